_base_ = "../_base_/mask-rcnn_1x_coco.py"
# Upstream has no dense tasks for v3: the first version's recipe, drop path as on ImageNet.
model = dict(
    backbone=dict(
        type="mmvssm.MSVMamba",
        arch="v3-tiny",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="mmvssm://msvmamba-v3-tiny"),
    )
)
