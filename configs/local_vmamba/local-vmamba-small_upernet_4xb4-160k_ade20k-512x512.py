_base_ = "../_base_/upernet_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        type="mmvssm.LocalVMamba",
        arch="small",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="mmvssm://local-vmamba-small"),
    )
)
optim_wrapper = dict(type="AmpOptimWrapper")  # as published; tiny was trained without it
