_base_ = "../_base_/mambavision_mask-rcnn_1x_coco.py"
model = dict(
    backbone=dict(
        arch="tiny",
        init_cfg=dict(
            type="Pretrained", checkpoint="mmvssm://mambavision-tiny", prefix="backbone."
        ),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
