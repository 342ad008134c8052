_base_ = "../_base_/vim_cascade-mask-rcnn_lsj-184k_coco.py"
model = dict(
    backbone=dict(arch="tiny", init_cfg=dict(checkpoint="mmvssm://vim-tiny?weights=online")),
    neck=dict(in_channels=192),
)
