# The digits of the segmentation demo (tools/make_demo_data.py) as animals.
_base_ = "dual-sam_vmamba-tiny_mas3k.py"

model = dict(
    backbone=dict(
        backbone=dict(
            _delete_=True,
            type="mmvssm.VMamba",
            arch=dict(embed_dims=32, depths=(1, 1, 2, 1)),
            drop_path_rate=0.05,
        ),
        in_channels=[32, 64, 128, 256],
        neck_channels=128,
    ),
    decoder_widths=[16, 32, 64, 128],
)
digits = dict(
    type="MarineAnimalDataset",
    data_root="data/digits-seg",
    img_suffix=".png",
)
# 0 is the rim of a stroke, 1 background; never flipped: a mirrored digit is not a digit
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadMask", minimum=2),
    dict(type="AddGammaImage"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        digits,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=pipeline,
        _delete_=True,
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        digits,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=pipeline,
        _delete_=True,
    ),
)
val_evaluator = test_evaluator = dict(_delete_=True, type="IoUMetric", iou_metrics=["mIoU"])
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=30),
    dict(type="CosineAnnealingLR", eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=2, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=1), logger=dict(interval=20))
randomness = dict(seed=0)
