_base_ = "../_base_/upernet_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        type="mmvssm.VMamba",
        arch="v0-base",
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="mmvssm://vmamba-v0-base-dp05"),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
