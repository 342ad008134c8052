_base_ = "../_base_/vim_mask-rcnn_lsj-184k_coco.py"
model = dict(
    backbone=dict(
        arch="tiny",
        init_cfg=dict(
            type="Pretrained", checkpoint="mmvssm://vim-tiny?weights=online", prefix="backbone."
        ),
    ),
    neck=dict(in_channels=192),
)
