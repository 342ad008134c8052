_base_ = "../_base_/vim_mask-rcnn_lsj-184k_coco.py"
model = dict(
    backbone=dict(
        arch="base",
        init_cfg=dict(
            type="Pretrained", checkpoint="mmvssm://vim-base?weights=online", prefix="backbone."
        ),
    ),
    neck=dict(in_channels=768),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.7))
