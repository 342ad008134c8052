# MambaVision in Mask R-CNN, with windows and drop path of the published Cascade Mask R-CNN (see
# mambavision_cascade-mask-rcnn_ms-3x_coco.py). A variant adds its arch and the neck's channels.
_base_ = "./mask-rcnn_amp-1x_coco.py"

model = dict(
    backbone=dict(type="mmvssm.MambaVision", window_sizes=(112, 56), drop_path_rate=0.2),
)
