_base_ = "../_base_/mask-rcnn_1x_coco.py"
# Upstream has no dense tasks for this arch: the recipe of s2l15, drop path as on ImageNet.
model = dict(
    backbone=dict(
        type="mmvssm.VMamba",
        arch="base-s1l20",
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint="mmvssm://vmamba-base-s1l20"),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
