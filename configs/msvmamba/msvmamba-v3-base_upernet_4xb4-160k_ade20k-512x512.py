_base_ = "../_base_/upernet_160k_ade20k-512x512.py"
# Upstream has no dense tasks for v3: the first version's recipe, drop path as on ImageNet.
model = dict(
    backbone=dict(
        type="mmvssm.MSVMamba",
        arch="v3-base",
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint="mmvssm://msvmamba-v3-base"),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
