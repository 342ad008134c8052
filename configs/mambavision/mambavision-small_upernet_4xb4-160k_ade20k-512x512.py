_base_ = "../_base_/mambavision_upernet_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        arch="small",
        window_sizes=(160, 56),
        init_cfg=dict(
            type="Pretrained", checkpoint="mmvssm://mambavision-small", prefix="backbone."
        ),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
