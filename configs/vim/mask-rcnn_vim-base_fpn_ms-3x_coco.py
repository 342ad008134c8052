_base_ = "../_base_/vim_mask-rcnn_ms-3x_coco.py"
model = dict(
    backbone=dict(arch="base", init_cfg=dict(checkpoint="mmvssm://vim-base?weights=online")),
    neck=dict(in_channels=768),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.7))
