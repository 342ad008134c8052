_base_ = "../_base_/upernet_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        type="mmvssm.MSVMamba",
        arch="nano",
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="mmvssm://msvmamba-nano?weights=online"),
    ),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192),
)
