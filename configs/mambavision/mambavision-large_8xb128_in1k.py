_base_ = "../_base_/mambavision_in1k.py"
model = dict(
    backbone=dict(arch="large", drop_path_rate=0.3),
    head=dict(in_channels=1568),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.12))
custom_hooks = [_base_.custom_hooks[0], dict(_base_.custom_hooks[1], weight=6.0)]
