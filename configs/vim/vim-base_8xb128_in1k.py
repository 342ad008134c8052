# The recipe of vim-base_8xb64_in1k.py for 1024 images a step, with the rate that the authors'
# trainer gives this batch: twice the published one. Not a published run.
_base_ = "./vim-base_8xb64_in1k.py"
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(_base_.param_scheduler[0], factor=5e-4),
    dict(_base_.param_scheduler[1], start_factor=5e-4),
    _base_.param_scheduler[2],
]
auto_scale_lr = dict(base_batch_size=1024)
