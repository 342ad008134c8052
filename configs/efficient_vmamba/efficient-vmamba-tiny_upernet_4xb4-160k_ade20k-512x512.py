_base_ = "../_base_/upernet_160k_ade20k-512x512.py"
# Upstream has no segmentation: Swin's recipe, drop path included.
model = dict(
    backbone=dict(
        type="mmvssm.EfficientVMamba",
        arch="tiny",
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="mmvssm://efficient-vmamba-tiny"),
    ),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192),
)
