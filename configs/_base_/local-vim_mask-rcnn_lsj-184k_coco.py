# LocalVim in Mask R-CNN, as published. The published runs sent gradients in half precision, which
# is left to the launcher here.
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "./vim_lsj-184k_coco.py",
    "./local-vim_detector.py",
]

pad = dict(_scope_="mmdet", type="Pad", size=(1024, 1024), pad_val=dict(img=(114, 114, 114)))
train_pipeline = [*_base_.train_dataloader.dataset.pipeline]
train_pipeline.insert(-1, pad)
test_pipeline = [*_base_.test_pipeline]
test_pipeline.insert(2, pad)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

norm_cfg = dict(type="mmvssm.MapNorm", eps=1e-6)
model = dict(
    backbone=dict(_base_.local_vim_detector.backbone, _delete_=True),
    neck=_base_.local_vim_detector.neck,
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(_scope_="mmdet", type="Shared4Conv1FCBBoxHead", norm_cfg=norm_cfg),
        mask_head=dict(_scope_="mmdet", type="FCNMaskHead", norm_cfg=norm_cfg),
    ),
)

optim_wrapper = _base_.local_vim_optim_wrapper

# inferencers load weights before they build the model, so mmvssm:// must be registered by then
__import__("mmvssm").register_scheme()
