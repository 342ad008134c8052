# Digits on textured canvases, to be labelled pixel by pixel (tools/make_demo_data.py): an
# mIoU of at least 0.6 within twelve minutes on two CPU cores.
_base_ = [
    "mmseg::_base_/models/upernet_swin.py",
    "mmseg::_base_/datasets/ade20k.py",
    "mmseg::_base_/default_runtime.py",
    "../_base_/vmamba_micro.py",
]

# The last layer starts with larger weights than usual. Otherwise training first separates digits
# from the background, and stays for long where all digits look the same.
head = dict(
    num_classes=11,
    norm_cfg=dict(type="BN"),
    init_cfg=dict(type="Normal", std=0.5, override=dict(name="conv_seg")),
)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(_base_.vmamba_micro, _delete_=True),
    decode_head=dict(head, in_channels=[32, 64, 128, 256], channels=64),
    auxiliary_head=dict(head, in_channels=128, channels=32),
)

# As in ADE20K, index 0 is unlabelled: it becomes 255, which the loss ignores.
digits = dict(
    _scope_="mmseg",
    type="BaseSegDataset",
    data_root="data/digits-seg",
    img_suffix=".png",
    reduce_zero_label=True,
    metainfo=dict(classes=("background", *"0123456789")),
)
# never flipped: a mirrored digit is not a digit
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(128, 128), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(128, 128)),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    sampler=dict(type="DefaultSampler"),
    dataset=dict(digits, pipeline=train_pipeline),
)
val_dataloader = dict(batch_size=16, num_workers=1, dataset=dict(digits, pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(by_epoch=True, max_epochs=8, val_interval=1)
log_processor = dict(by_epoch=True)
default_hooks = dict(
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=1),
    logger=dict(type="LoggerHook", interval=20),
)
auto_scale_lr = dict(enable=False, base_batch_size=8)
randomness = dict(seed=0)
