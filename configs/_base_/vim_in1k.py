# Vim on ImageNet-1k, following DeiT: the differences from in1k_300e.py. In full precision,
# without clipping. A variant adds its name, drop path and the width of the head.
_base_ = "./in1k_300e.py"

model = dict(backbone=dict(_delete_=True, type="mmvssm.Vim"), neck=None)

train_dataloader = dict(sampler=dict(type="mmpretrain.RepeatAugSampler"))

# No decay of 1-D parameters, biases (dt_projs_bias holds those of two layers) and embeddings.
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys=dict(
            pos_embed=dict(decay_mult=0.0),
            cls_token=dict(decay_mult=0.0),
            dt_projs_bias=dict(decay_mult=0.0),
        ),
    ),
)

# Updated by epoch, one epoch late, as in the authors' trainer: 1e-6 in the first two epochs, then
# rising up to the seventh, and a cosine of 300 epochs, whose start the warm-up hides.
param_scheduler = [
    dict(type="ConstantLR", factor=1e-3, end=2),
    dict(type="LinearLR", start_factor=1e-3, begin=1, end=7),
    dict(type="CosineAnnealingLR", eta_min=1e-5, begin=1, end=301),
]

# decay 0.99996
custom_hooks = [dict(type="mmpretrain.EMAHook", momentum=4e-5, priority="ABOVE_NORMAL")]
