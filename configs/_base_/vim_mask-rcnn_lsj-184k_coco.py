# Vim in Mask R-CNN, long schedule: for base as in the authors' project, which has it next to the
# published Cascade Mask R-CNN (vim_cascade-mask-rcnn_lsj-184k_coco.py). The project has no files
# for tiny and small, which differ from base here as they do there. No results were published.
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "./vim_lsj-184k_coco.py",
    "./vim_detector.py",
]

norm_cfg = dict(type="mmvssm.MapNorm", eps=1e-6)
model = dict(
    data_preprocessor=dict(pad_size_divisor=1024),
    backbone=dict(_base_.vim_detector.backbone, _delete_=True),
    neck=_base_.vim_detector.neck,
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(_scope_="mmdet", type="Shared4Conv1FCBBoxHead", norm_cfg=norm_cfg),
        mask_head=dict(_scope_="mmdet", type="FCNMaskHead", norm_cfg=norm_cfg),
    ),
)

optim_wrapper = dict(_base_.vim_optim_wrapper, type="AmpOptimWrapper")
