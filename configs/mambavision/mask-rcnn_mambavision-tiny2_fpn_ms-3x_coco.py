_base_ = "../_base_/mambavision_mask-rcnn_ms-3x_coco.py"
model = dict(
    backbone=dict(
        arch="tiny2",
        init_cfg=dict(
            type="Pretrained", checkpoint="mmvssm://mambavision-tiny2", prefix="backbone."
        ),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
