_base_ = "../_base_/upernet_160k_ade20k-640x640.py"
model = dict(
    backbone=dict(
        type="mmvssm.VMamba",
        arch="small-s2l15",
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="mmvssm://vmamba-small-s2l15"),
    )
)
