# The published run started from weights of Vim's first release: rope=True, divide_out=False.
_base_ = "../_base_/vim_upernet_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(arch="small", init_cfg=dict(checkpoint="mmvssm://vim-small?weights=online")),
    neck=dict(embed_dim=384),
    decode_head=dict(in_channels=[384] * 4, channels=384),
    auxiliary_head=dict(in_channels=384),
)
