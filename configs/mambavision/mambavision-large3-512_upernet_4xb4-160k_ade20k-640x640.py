_base_ = "../_base_/upernet_160k_ade20k-640x640.py"
# In full precision: mixed precision made this network unstable.
model = dict(
    backbone=dict(
        type="mmvssm.MambaVision",
        arch="large3-512",
        window_sizes=(64, 32),
        drop_path_rate=0.2,
        init_cfg=dict(
            type="Pretrained", checkpoint="mmvssm://mambavision-large3-512", prefix="backbone."
        ),
    ),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(optimizer=dict(lr=8e-5, weight_decay=0.05))
