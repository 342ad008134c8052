_base_ = "../_base_/mambavision_upernet_160k_ade20k-512x512.py"
# Not published: the rate of small.
model = dict(
    backbone=dict(
        arch="large2",
        init_cfg=dict(
            type="Pretrained", checkpoint="mmvssm://mambavision-large2", prefix="backbone."
        ),
    ),
    decode_head=dict(in_channels=[196, 392, 784, 1568]),
    auxiliary_head=dict(in_channels=784),
)
