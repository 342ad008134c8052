# Not published; the recipe is the paper's for Vim-Ti and Vim-S.
_base_ = "./vim-small_upernet_4xb4-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(arch="base", init_cfg=dict(checkpoint="mmvssm://vim-base?weights=online")),
    neck=dict(embed_dim=768),
    decode_head=dict(in_channels=[768] * 4, channels=768),
    auxiliary_head=dict(in_channels=768),
)
