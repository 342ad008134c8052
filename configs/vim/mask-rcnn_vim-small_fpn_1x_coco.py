_base_ = "../_base_/vim_mask-rcnn_1x_coco.py"
model = dict(
    backbone=dict(arch="small", init_cfg=dict(checkpoint="mmvssm://vim-small?weights=online")),
    neck=dict(in_channels=384),
)
