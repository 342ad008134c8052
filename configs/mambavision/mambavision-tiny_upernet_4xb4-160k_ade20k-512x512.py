_base_ = "../_base_/mambavision_upernet_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        arch="tiny",
        init_cfg=dict(
            type="Pretrained", checkpoint="mmvssm://mambavision-tiny", prefix="backbone."
        ),
    ),
    decode_head=dict(in_channels=[80, 160, 320, 640]),
    auxiliary_head=dict(in_channels=320),
)
optim_wrapper = dict(optimizer=dict(lr=5e-5))
