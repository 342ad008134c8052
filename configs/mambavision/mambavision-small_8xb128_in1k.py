_base_ = "../_base_/mambavision_in1k.py"
model = dict(
    backbone=dict(arch="small", drop_path_rate=0.2),
    head=dict(in_channels=768),
)
custom_hooks = [_base_.custom_hooks[0], dict(_base_.custom_hooks[1], weight=1.0)]

# a crop of 0.93
test_pipeline = [
    dict(step, scale=240) if step.type == "ResizeEdge" else step for step in _base_.test_pipeline
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
