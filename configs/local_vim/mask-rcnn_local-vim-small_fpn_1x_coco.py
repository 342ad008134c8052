_base_ = "../_base_/local-vim_mask-rcnn_1x_coco.py"
model = dict(
    backbone=dict(arch="small", init_cfg=dict(checkpoint="mmvssm://local-vim-small")),
    neck=dict(in_channels=384),
)
