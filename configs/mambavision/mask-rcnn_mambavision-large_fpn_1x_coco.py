_base_ = "../_base_/mambavision_mask-rcnn_1x_coco.py"
model = dict(
    backbone=dict(
        arch="large",
        init_cfg=dict(
            type="Pretrained", checkpoint="mmvssm://mambavision-large", prefix="backbone."
        ),
    ),
    neck=dict(in_channels=[196, 392, 784, 1568]),
)
