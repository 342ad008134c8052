# Handwritten digits, 1,442 to train on and 355 held out (tools/make_demo_data.py):
# at least 95 % top-1 within three minutes on two CPU cores.
_base_ = ["mmpretrain::_base_/default_runtime.py", "../_base_/vmamba_micro.py"]

model = dict(
    _scope_="mmpretrain",
    type="ImageClassifier",
    backbone=dict(_base_.vmamba_micro, out_indices=(3,)),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=10, in_channels=256),
)
data_preprocessor = dict(num_classes=10, mean=[80] * 3, std=[95] * 3)

digits = dict(_scope_="mmpretrain", type="CustomDataset", data_root="data/digits-cls")
# shifted by up to two pixels; never flipped: a mirrored digit is not a digit
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomCrop", crop_size=32, padding=2),
    dict(type="PackInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="PackInputs")]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(digits, data_prefix="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(digits, data_prefix="val", pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="mmpretrain.Accuracy", topk=1)
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=15, val_interval=1)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1), logger=dict(interval=10))
auto_scale_lr = dict(base_batch_size=64)
randomness = dict(seed=0)
