_base_ = "../_base_/mask-rcnn_amp-1x_coco.py"
# Upstream's file has depths 2-2-9-2 and a neck with Swin's widths; neither fits the weights.
model = dict(
    backbone=dict(
        type="mmvssm.EfficientVMamba",
        arch="tiny",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="mmvssm://efficient-vmamba-tiny"),
    ),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
