_base_ = "../_base_/local-vim_mask-rcnn_1x_coco.py"
model = dict(
    backbone=dict(arch="tiny", init_cfg=dict(checkpoint="mmvssm://local-vim-tiny")),
    neck=dict(in_channels=192),
)
