_base_ = "../_base_/mambavision_in1k.py"
model = dict(
    backbone=dict(arch="base", drop_path_rate=0.3),
    head=dict(in_channels=1024),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.075))
param_scheduler = [dict(_base_.param_scheduler[0], end=35), _base_.param_scheduler[1]]
custom_hooks = [_base_.custom_hooks[0], dict(_base_.custom_hooks[1], weight=1.0, begin=94)]
