_base_ = "../_base_/retinanet_1x_coco.py"
# Upstream has no config: PVT's recipe, which the paper follows, with the paper's drop path.
model = dict(
    backbone=dict(
        type="mmvssm.EfficientVMamba",
        arch="small",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="mmvssm://efficient-vmamba-small"),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
