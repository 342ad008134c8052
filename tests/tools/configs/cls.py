# Three classes of coloured squares; everything random that classification training can have.
_base_ = "mmpretrain::_base_/default_runtime.py"

model = dict(
    _scope_="mmpretrain",
    type="ImageClassifier",
    backbone=dict(
        type="mmvssm.VMamba",
        arch=dict(embed_dims=8, depths=(1, 1, 1, 1)),
        drop_path_rate=0.5,
        out_indices=(3,),
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=3,
        in_channels=64,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1),
    ),
    train_cfg=dict(augments=dict(type="Mixup", alpha=0.8)),
)
data_preprocessor = dict(num_classes=3, mean=[128] * 3, std=[64] * 3)

dataset = dict(type="mmpretrain.CustomDataset", data_root="data/cls")
load = dict(type="mmcv.LoadImageFromFile")
pack = dict(type="mmpretrain.PackInputs")
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        dataset,
        data_prefix="train",
        pipeline=[
            load,
            dict(type="mmpretrain.RandomCrop", crop_size=32, padding=4),
            dict(type="mmpretrain.RandomFlip", prob=0.5),
            pack,
        ],
    ),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(dataset, data_prefix="val", pipeline=[load, pack]),
)
val_evaluator = dict(type="mmpretrain.Accuracy", topk=1)
test_dataloader = val_dataloader
test_evaluator = val_evaluator

# as in mmpretrain's schedules, no type: --amp must cope
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1e-3))
train_cfg = dict(by_epoch=True, max_epochs=3)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=16)
