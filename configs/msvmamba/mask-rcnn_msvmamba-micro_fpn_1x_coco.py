_base_ = "../_base_/mask-rcnn_1x_coco.py"
model = dict(
    backbone=dict(
        type="mmvssm.MSVMamba",
        arch="micro",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="mmvssm://msvmamba-micro?weights=online"),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
