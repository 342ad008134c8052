_base_ = "../_base_/mask-rcnn_1x_coco.py"
# Upstream has no dense tasks for this arch: the recipe of s2l15, drop path as on ImageNet.
model = dict(
    backbone=dict(
        type="mmvssm.VMamba",
        arch="small-s1l20",
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="mmvssm://vmamba-small-s1l20"),
    )
)
