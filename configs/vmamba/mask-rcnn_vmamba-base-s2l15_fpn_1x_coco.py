_base_ = "../_base_/mask-rcnn_1x_coco.py"
model = dict(
    backbone=dict(
        type="mmvssm.VMamba",
        arch="base-s2l15",
        drop_path_rate=0.6,
        init_cfg=dict(checkpoint="mmvssm://vmamba-base-s2l15"),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
