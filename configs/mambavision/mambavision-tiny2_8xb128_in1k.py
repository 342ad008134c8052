_base_ = "../_base_/mambavision_in1k.py"
model = dict(
    backbone=dict(arch="tiny2", drop_path_rate=0.2),
    head=dict(in_channels=640),
)
custom_hooks = [_base_.custom_hooks[0], dict(_base_.custom_hooks[1], weight=0.75)]

# a crop of 0.98
test_pipeline = [
    dict(step, scale=228) if step.type == "ResizeEdge" else step for step in _base_.test_pipeline
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
