_base_ = "../_base_/mambavision_mask-rcnn_ms-3x_coco.py"
model = dict(
    backbone=dict(
        arch="large2",
        init_cfg=dict(
            type="Pretrained", checkpoint="mmvssm://mambavision-large2", prefix="backbone."
        ),
    ),
    neck=dict(in_channels=[196, 392, 784, 1568]),
)
