# MambaVision in Cascade Mask R-CNN, 36 epochs, many scales: heads and data of ConvNeXt's config,
# learning rate and decay of Swin's. A variant adds its arch and the channels of the neck.
#
# One window covers the maps of stages 3 and 4, which are zero-padded to its size. The published
# configs set other drop-path rates, which the published code ignores: it uses 0.2.
_base_ = (
    "mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
)

# ConvNeXt's
custom_imports = None
checkpoint_file = None

model = dict(
    backbone=dict(
        _delete_=True, type="mmvssm.MambaVision", window_sizes=(112, 56), drop_path_rate=0.2
    ),
)

optim_wrapper = dict(
    _delete_=True,
    type="AmpOptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0))),
)

# inferencers load weights before they build the model, so mmvssm:// must be registered by then
__import__("mmvssm").register_scheme()
