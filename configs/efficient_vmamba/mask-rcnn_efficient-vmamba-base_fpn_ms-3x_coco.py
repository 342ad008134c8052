_base_ = "../_base_/mask-rcnn_amp-ms-3x_coco.py"
model = dict(
    backbone=dict(
        type="mmvssm.EfficientVMamba",
        arch="base",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="mmvssm://efficient-vmamba-base"),
    )
)
