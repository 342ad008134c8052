_base_ = "../_base_/mambavision_cascade-mask-rcnn_ms-3x_coco.py"
model = dict(
    backbone=dict(
        arch="small",
        init_cfg=dict(
            type="Pretrained", checkpoint="mmvssm://mambavision-small", prefix="backbone."
        ),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
