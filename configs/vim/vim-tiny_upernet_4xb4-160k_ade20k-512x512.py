_base_ = "../_base_/vim_upernet_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(arch="tiny", feature="mixer"),
    neck=dict(embed_dim=192),
    decode_head=dict(in_channels=[192] * 4, channels=192),
    auxiliary_head=dict(in_channels=192),
)
# the decay as run (Vim-Ti's file says half of it), and the rate, 2e-4, for half of the images
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.1),
    paramwise_cfg=dict(
        custom_keys={
            "patch_embed": dict(lr_mult=0.92**25),
            "patch_embed.conv1.bias": dict(lr_mult=0.92**25),
            "pos_embed": dict(lr_mult=0.92**25),
        }
    ),
)
