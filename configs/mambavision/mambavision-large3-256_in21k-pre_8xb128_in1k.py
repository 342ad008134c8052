_base_ = "../_base_/mambavision_in1k.py"
# The network of the weights that were pretrained on ImageNet-21k. Their fine-tuning is not
# published: this is the recipe of large2 at their image size.
model = dict(
    backbone=dict(arch="large3-256", drop_path_rate=0.5),
    head=dict(in_channels=2048),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.12))
custom_hooks = [_base_.custom_hooks[0], dict(_base_.custom_hooks[1], weight=6.0)]

train_pipeline = [
    dict(step, scale=256) if step.type == "RandomResizedCrop" else step
    for step in _base_.train_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

changes = dict(
    ResizeEdge=dict(
        type="ResizeEdge", scale=256, edge="short", backend="pillow", interpolation="bicubic"
    ),
    CenterCrop=dict(type="CenterCrop", crop_size=256),
)
test_pipeline = [changes.get(step.type, step) for step in _base_.test_pipeline]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
