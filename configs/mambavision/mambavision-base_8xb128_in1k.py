_base_ = "../_base_/mambavision_in1k.py"
model = dict(
    backbone=dict(arch="base", drop_path_rate=0.3),
    head=dict(in_channels=1024),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.075))
param_scheduler = [dict(_base_.param_scheduler[0], end=35), _base_.param_scheduler[1]]
