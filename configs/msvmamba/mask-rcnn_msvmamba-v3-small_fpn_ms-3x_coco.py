_base_ = "../_base_/mask-rcnn_ms-3x_coco.py"
# Upstream has no dense tasks for v3: the first version's recipe, drop path as on ImageNet.
model = dict(
    backbone=dict(
        type="mmvssm.MSVMamba",
        arch="v3-small",
        drop_path_rate=0.4,
        init_cfg=dict(checkpoint="mmvssm://msvmamba-v3-small"),
    )
)
