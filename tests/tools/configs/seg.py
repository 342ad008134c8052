# Coloured squares pixel by pixel, a very thin UperNet, trained by iterations.
_base_ = ["mmseg::_base_/models/upernet_swin.py", "mmseg::_base_/default_runtime.py"]

norm_cfg = dict(type="SyncBN")
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        _delete_=True,
        type="mmvssm.VMamba",
        arch=dict(embed_dims=8, depths=(1, 1, 1, 1)),
        drop_path_rate=0.5,
    ),
    decode_head=dict(in_channels=[8, 16, 32, 64], channels=8, num_classes=4),
    auxiliary_head=dict(in_channels=32, channels=8, num_classes=4),
)

load = dict(type="mmcv.LoadImageFromFile")
annotate = dict(type="mmseg.LoadAnnotations")
pack = dict(type="mmseg.PackSegInputs")
dataset = dict(
    type="mmseg.BaseSegDataset",
    data_root="data/seg",
    data_prefix=dict(img_path="images", seg_map_path="labels"),
    img_suffix=".png",
    metainfo=dict(
        classes=("none", "red", "green", "blue"),
        palette=[[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]],
    ),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        dataset,
        pipeline=[
            load,
            annotate,
            dict(type="mmseg.RandomCrop", crop_size=(64, 64)),
            dict(type="mmseg.PhotoMetricDistortion"),
            pack,
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(dataset, pipeline=[load, annotate, pack]),
)
val_evaluator = dict(type="mmseg.IoUMetric", iou_metrics=["mIoU"])
test_dataloader = val_dataloader
test_evaluator = val_evaluator
tta_pipeline = [
    load,
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="mmseg.Resize", scale_factor=ratio, keep_ratio=True)
                for ratio in (0.5, 1.0, 1.75)
            ],
            [dict(type="mmseg.RandomFlip", prob=prob) for prob in (0.0, 1.0)],
            [annotate],
            [pack],
        ],
    ),
]

optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
train_cfg = dict(type="IterBasedTrainLoop", max_iters=6, val_interval=6)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=1),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=2),
)
auto_scale_lr = dict(base_batch_size=8)
