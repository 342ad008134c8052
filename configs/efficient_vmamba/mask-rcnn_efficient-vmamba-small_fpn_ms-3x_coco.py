_base_ = "../_base_/mask-rcnn_amp-ms-3x_coco.py"
# 64 wide, as the weights are: upstream's file says 96.
model = dict(
    backbone=dict(
        type="mmvssm.EfficientVMamba",
        arch="small",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="mmvssm://efficient-vmamba-small"),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
