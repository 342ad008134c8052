_base_ = "../_base_/vim_cascade-mask-rcnn_lsj-184k_coco.py"
model = dict(
    backbone=dict(arch="small", init_cfg=dict(checkpoint="mmvssm://vim-small?weights=online")),
    neck=dict(in_channels=384),
)
