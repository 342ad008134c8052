# The decoders on a state-space backbone, which sees both images and is trained completely.
_base_ = "dual-sam_vit-b_mas3k.py"

# An ImageNet classifier of this package, from tools/convert_ema.py; None starts from scratch.
checkpoint_file = None
model = dict(
    backbone=dict(
        _delete_=True,
        type="DualPyramid",
        backbone=dict(
            type="mmvssm.VMamba",
            arch="tiny-s1l8",
            drop_path_rate=0.2,
            init_cfg=checkpoint_file
            and dict(type="Pretrained", checkpoint=checkpoint_file, prefix="backbone."),
        ),
        in_channels=[96, 192, 384, 768],
    )
)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, weight_decay=0.05), paramwise_cfg=dict(flat_decay_mult=0.0)
)
