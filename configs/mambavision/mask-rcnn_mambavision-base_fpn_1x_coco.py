_base_ = "../_base_/mambavision_mask-rcnn_1x_coco.py"
model = dict(
    backbone=dict(
        arch="base",
        init_cfg=dict(
            type="Pretrained", checkpoint="mmvssm://mambavision-base", prefix="backbone."
        ),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
