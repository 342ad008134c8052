_base_ = "../_base_/mask-rcnn_1x_coco.py"
model = dict(
    backbone=dict(type="mmvssm.VMamba", arch="base-s1l20", drop_path_rate=0.6),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
