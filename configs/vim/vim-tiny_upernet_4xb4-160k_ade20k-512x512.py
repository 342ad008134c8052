_base_ = "../_base_/vim_upernet_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        arch="tiny",
        feature="mixer",
        init_cfg=dict(checkpoint="mmvssm://vim-tiny?weights=online"),
    ),
    neck=dict(embed_dim=192),
    decode_head=dict(in_channels=[192] * 4, channels=192),
    auxiliary_head=dict(in_channels=192),
)
