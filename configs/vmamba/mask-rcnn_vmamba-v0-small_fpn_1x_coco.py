_base_ = "../_base_/mask-rcnn_1x_coco.py"
model = dict(
    backbone=dict(
        type="mmvssm.VMamba",
        arch="v0-small",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="mmvssm://vmamba-v0-small"),
    )
)
