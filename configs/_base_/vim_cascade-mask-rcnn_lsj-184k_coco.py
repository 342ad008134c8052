# Vim in Cascade Mask R-CNN, as published: Detectron2's heads and their training. The box loss is
# L1; the second and third stage train on all boxes of the stage before, without further sampling.
# The published networks had rope=True and divide_out=False, and no class token, or had it removed.
_base_ = "./vim_cascade-mask-rcnn_mmdet-heads_lsj-184k_coco.py"

norm_cfg = dict(type="mmvssm.MapNorm", eps=1e-6)
model = dict(
    rpn_head=dict(num_convs=2, loss_bbox=dict(_delete_=True, _scope_="mmdet", type="L1Loss")),
    roi_head=dict(
        type="mmvssm.models.roi_heads.SingleMaskCascadeRoIHead",
        stage_loss_weights=[1, 1, 1],
        bbox_head=[
            dict(
                head,
                type="Shared4Conv1FCBBoxHead",
                norm_cfg=norm_cfg,
                bbox_coder=dict(head.bbox_coder, target_stds=[1 / k, 1 / k, 2 / k, 2 / k]),
                loss_bbox=dict(_scope_="mmdet", type="L1Loss"),
            )
            for head, k in zip(_base_.model.roi_head.bbox_head, (10, 20, 30))
        ],
        mask_head=dict(norm_cfg=norm_cfg),
    ),
    train_cfg=dict(
        rpn=dict(allowed_border=-1),
        rpn_proposal=dict(max_per_img=1000),
        rcnn=[
            _base_.model.train_cfg.rcnn[0],
            *(
                dict(
                    stage, sampler=dict(stage.sampler, pos_fraction=1.0, add_gt_as_proposals=False)
                )
                for stage in _base_.model.train_cfg.rcnn[1:]
            ),
        ],
    ),
)
