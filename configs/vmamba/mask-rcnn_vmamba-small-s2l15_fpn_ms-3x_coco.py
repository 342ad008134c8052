_base_ = "../_base_/mask-rcnn_ms-3x_coco.py"
model = dict(
    backbone=dict(
        type="mmvssm.VMamba",
        arch="small-s2l15",
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="mmvssm://vmamba-small-s2l15"),
    )
)
