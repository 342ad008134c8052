_base_ = "../_base_/local-vim_mask-rcnn_ms-3x_coco.py"
model = dict(
    backbone=dict(
        arch="small-searched",
        init_cfg=dict(checkpoint="mmvssm://local-vim-small-searched"),
    ),
    neck=dict(in_channels=384),
)
