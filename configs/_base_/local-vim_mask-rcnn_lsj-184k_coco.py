# LocalVim in Mask R-CNN, as published; gradients were sent in half precision, which is left to
# the launcher.
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "./vim_lsj-184k_coco.py",
    "./local-vim_detector.py",
]

norm_cfg = dict(type="mmvssm.MapNorm", eps=1e-6)
model = dict(
    data_preprocessor=dict(
        batch_augments=[
            dict(
                type="mmdet.BatchFixedSizePad", size=(1024, 1024), img_pad_value=114, pad_mask=True
            )
        ]
    ),
    backbone=dict(_base_.local_vim_detector.backbone, _delete_=True),
    neck=_base_.local_vim_detector.neck,
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(_scope_="mmdet", type="Shared4Conv1FCBBoxHead", norm_cfg=norm_cfg),
        mask_head=dict(_scope_="mmdet", type="FCNMaskHead", norm_cfg=norm_cfg),
    ),
)

optim_wrapper = _base_.local_vim_optim_wrapper
