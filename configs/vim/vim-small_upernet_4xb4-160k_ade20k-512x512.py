# As run, it started from weights of Vim's first release: rope=True, divide_out=False.
_base_ = "../_base_/vim_upernet_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(arch="small"),
    neck=dict(embed_dim=384),
    decode_head=dict(in_channels=[384] * 4, channels=384),
    auxiliary_head=dict(in_channels=384),
)
# layer decay as run: Vim-S's file says 0.92
optim_wrapper = dict(
    optimizer=dict(lr=5e-5, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            "patch_embed": dict(lr_mult=0.95**25),
            "patch_embed.conv1.bias": dict(lr_mult=0.95**25),
            "pos_embed": dict(lr_mult=0.95**25),
        }
    ),
)
