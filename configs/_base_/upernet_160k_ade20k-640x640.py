# UperNet on larger crops, from images larger by the same factor; otherwise as at 512.
_base_ = "./upernet_160k_ade20k-512x512.py"

crop_size = (640, 640)
model = dict(data_preprocessor=dict(size=crop_size))

image_size = dict(scale=(2560, 640))
changes = dict(
    RandomResize=image_size,
    Resize=image_size,
    RandomCrop=dict(crop_size=crop_size),
)
train_pipeline = [dict(step, **changes.get(step.type, {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **changes.get(step.type, {})) for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
