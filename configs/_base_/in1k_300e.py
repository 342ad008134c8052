# ImageNet-1k, 300 epochs: Swin's config, whose recipe VMamba follows, with the differences.
# A variant adds its backbone and, unless it is 768, the width of the head.
_base_ = "mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py"

model = dict(backbone=dict(_delete_=True, out_indices=(3,)))

# images of the same size, stacked by the workers
collate_fn = dict(type="mmvssm.default_collate")
train_dataloader = dict(batch_size=128, collate_fn=collate_fn)
val_dataloader = dict(collate_fn=collate_fn)
test_dataloader = val_dataloader

# Swin's config exempts 1-D parameters and biases from weight decay, this one position embeddings
# as well. A_logs and the step bias are 2-D and decayed, as in the published runs.
optim_wrapper = dict(
    type="AmpOptimWrapper",  # with a stock script on a CPU: optim_wrapper.type=OptimWrapper
    paramwise_cfg=dict(custom_keys={"pos_embed": dict(decay_mult=0.0)}),
)

# as Swin's, but the cosine is updated every iteration
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=20, convert_to_iter_based=True),
    dict(type="mmvssm.CosineAnnealingLR", eta_min=1e-5, begin=20, convert_to_iter_based=True),
]

# decay 0.9999
custom_hooks = [dict(type="mmpretrain.EMAHook", momentum=1e-4, priority="ABOVE_NORMAL")]

default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))

# inferencers load weights before they build the model, so mmvssm:// must be registered by then
__import__("mmvssm").register_scheme()
