_base_ = "../_base_/mambavision_upernet_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        arch="base",
        init_cfg=dict(
            type="Pretrained", checkpoint="mmvssm://mambavision-base", prefix="backbone."
        ),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
optim_wrapper = dict(optimizer=dict(lr=5e-5))
