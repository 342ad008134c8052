# Coloured squares with boxes and masks, a very thin Mask R-CNN.
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        _delete_=True, type="mmvssm.VMamba", arch=dict(embed_dims=8, depths=(1, 1, 1, 1))
    ),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4),
    rpn_head=dict(
        in_channels=16,
        feat_channels=16,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16, num_classes=3),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(num_convs=1, in_channels=16, conv_out_channels=16, num_classes=3),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=50, max_per_img=20), rcnn=dict(sampler=dict(num=16))),
    # even an untrained detector must find something to merge
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=10)),
)

load = dict(type="mmcv.LoadImageFromFile")
annotate = dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True)
resize = dict(type="mmdet.Resize", scale=(64, 64), keep_ratio=True)
pack = dict(
    type="mmdet.PackDetInputs",
    meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
)
dataset = dict(
    type="mmdet.CocoDataset",
    data_root="data/det/",
    ann_file="annotations.json",
    data_prefix=dict(img="images/"),
    metainfo=dict(classes=("red", "green", "blue")),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    # a wrapped dataset, as in mmdet's 3x schedules
    dataset=dict(
        type="RepeatDataset",
        times=2,
        dataset=dict(
            dataset,
            pipeline=[load, annotate, resize, dict(type="mmdet.RandomFlip", prob=0.5), pack],
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(dataset, test_mode=True, pipeline=[load, resize, annotate, pack]),
)
val_evaluator = dict(
    type="mmdet.CocoMetric", ann_file="data/det/annotations.json", metric=["bbox", "segm"]
)
test_dataloader = val_dataloader
test_evaluator = val_evaluator

optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(logger=dict(interval=1))
