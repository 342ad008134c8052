# Shared settings of the three demo trainings: tiny-s1l8's design, small enough for two CPU cores,
# and the optimization. Each config says `model=dict(backbone=dict(_base_.vmamba_micro, ...))`.
vmamba_micro = dict(
    type="mmvssm.VMamba",
    arch=dict(embed_dims=32, depths=(1, 1, 2, 1)),
    drop_path_rate=0.05,
)

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(bias_decay_mult=0.0, norm_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=50),
    dict(type="CosineAnnealingLR", eta_min=1e-5, convert_to_iter_based=True),
]
val_cfg = dict()
test_cfg = dict()
