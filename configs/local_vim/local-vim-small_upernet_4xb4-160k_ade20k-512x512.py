_base_ = "../_base_/local-vim_upernet_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(arch="small", init_cfg=dict(checkpoint="mmvssm://local-vim-small")),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
