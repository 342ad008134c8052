_base_ = "../_base_/mambavision_in1k.py"
# The network of the weights that were pretrained on ImageNet-21k. Their fine-tuning is not
# published: this is the recipe of large2 at their image size.
model = dict(
    backbone=dict(arch="large2-512", drop_path_rate=0.3),
    head=dict(in_channels=1568),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.12))
custom_hooks = [_base_.custom_hooks[0], dict(_base_.custom_hooks[1], weight=6.0)]

train_pipeline = [
    dict(step, scale=512) if step.type == "RandomResizedCrop" else step
    for step in _base_.train_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

# a crop of 0.93 from a square resize, whatever the aspect ratio of the image
changes = dict(
    ResizeEdge=dict(type="Resize", scale=(550, 550), backend="pillow", interpolation="bicubic"),
    CenterCrop=dict(type="CenterCrop", crop_size=512),
)
test_pipeline = [changes.get(step.type, step) for step in _base_.test_pipeline]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
