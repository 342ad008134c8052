# Shared by all configs: data, an image with its gamma-corrected copy, and the published schedule.
# Each data set is trained and tested separately; a config names its folder.
_base_ = "mmseg::_base_/default_runtime.py"
custom_imports = dict(imports=["projects.dual_sam"])

size = (512, 512)
model = dict(
    type="DualSAM",
    data_preprocessor=dict(
        type="ImagePairPreProcessor",
        mean=[124.55, 118.90, 102.94] * 2,  # RGB of the image, RGB of its copy
        std=[56.77, 55.97, 57.50] * 2,
        size_divisor=1,  # no padding
    ),
)

data_root = "data/MAS3K"
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadMask"),
    dict(type="AddGammaImage"),
    dict(type="Resize", scale=size, keep_ratio=False),
    dict(type="PackSegInputs"),
]
# scores are computed at the size of the mask
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="AddGammaImage"),
    dict(type="Resize", scale=size, keep_ratio=False),
    dict(type="LoadMask"),
    dict(type="PackSegInputs"),
]
dataset = dict(type="MarineAnimalDataset", data_prefix=dict(img_path="Image", seg_map_path="Masks"))
train_dataloader = dict(
    batch_size=5,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(dataset, data_root=f"{data_root}/train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(dataset, data_root=f"{data_root}/test", pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type="AnimalMetric")

optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.1))
param_scheduler = [dict(type="MultiStepLR", milestones=[10, 20], gamma=0.1, by_epoch=True)]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=25, val_interval=25)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
log_processor = dict(by_epoch=True)
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=5, max_keep_ckpts=1),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
