# MambaVision on ImageNet-1k: the differences from in1k_300e.py. 310 epochs, and ten more at the
# lowest rate. A variant adds its backbone, the width of the head and, where they differ, weight
# decay, the weight of MESA and how test images are resized.
#
# 32x128 images per step, as published: on 8 GPUs four batches are accumulated. With 32 GPUs set
# accumulative_counts and the interval of the average to 1, and do not use --auto-scale-lr: the
# optimizer is LAMB, for which linear scaling does not hold.
#
# The published runs chose the interpolation of crops at random from two; here it is bicubic.
_base_ = "./in1k_300e.py"

model = dict(backbone=dict(type="mmvssm.MambaVision", out_norm="bn"))

# the shorter side is resized to the crop size itself, as most variants were tested
test_pipeline = [
    dict(step, scale=224) if step.type == "ResizeEdge" else step for step in _base_.test_pipeline
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# No decay of 1-D parameters and biases: dt_projs_bias has a second axis, for routes.
optim_wrapper = dict(
    accumulative_counts=4,
    optimizer=dict(
        _delete_=True,
        type="mmpretrain.Lamb",
        lr=5e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.05,
    ),
    paramwise_cfg=dict(custom_keys=dict(dt_projs_bias=dict(decay_mult=0.0))),
)

# the cosine starts at the first iteration, during the warm-up
param_scheduler = [
    dict(type="LinearLR", start_factor=2e-4, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=5e-6, end=310, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=320)

# decay 0.9998; the buffers of batch norms are averaged as well
custom_hooks = [
    dict(_base_.custom_hooks[0], momentum=2e-4, interval=4, update_buffers=True),
    # after a quarter of 310 epochs
    dict(type="mmvssm.MESAHook", weight=0.5, begin=78),
]
