_base_ = "../_base_/vim_mask-rcnn_1x_coco.py"
model = dict(
    backbone=dict(arch="tiny", init_cfg=dict(checkpoint="mmvssm://vim-tiny?weights=online")),
    neck=dict(in_channels=192),
)
