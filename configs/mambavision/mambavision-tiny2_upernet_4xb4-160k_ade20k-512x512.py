_base_ = "../_base_/mambavision_upernet_160k_ade20k-512x512.py"
# Not published: the rate of small.
model = dict(
    backbone=dict(
        arch="tiny2",
        init_cfg=dict(
            type="Pretrained", checkpoint="mmvssm://mambavision-tiny2", prefix="backbone."
        ),
    ),
    decode_head=dict(in_channels=[80, 160, 320, 640]),
    auxiliary_head=dict(in_channels=320),
)
