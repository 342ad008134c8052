# Vim in Cascade Mask R-CNN with mmdet's own heads, on the published schedule (see
# vim_cascade-mask-rcnn_lsj-184k_coco.py). The published runs sent gradients in half precision,
# which is left to the launcher here.
_base_ = [
    "mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py",
    "./vim_lsj-184k_coco.py",
    "./vim_detector.py",
]

model = dict(
    data_preprocessor=dict(pad_size_divisor=1024),
    backbone=dict(_base_.vim_detector.backbone, _delete_=True),
    neck=_base_.vim_detector.neck,
)

optim_wrapper = dict(_base_.vim_optim_wrapper, type="AmpOptimWrapper")
