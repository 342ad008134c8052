_base_ = "../_base_/upernet_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        type="mmvssm.VMamba",
        arch="v0-tiny",
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="mmvssm://vmamba-v0-tiny"),
    )
)
