_base_ = "../_base_/mask-rcnn_amp-ms-3x_coco.py"
model = dict(
    backbone=dict(
        type="mmvssm.LocalVMamba",
        arch="tiny",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="mmvssm://local-vmamba-tiny"),
    )
)
