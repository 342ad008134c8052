# The published schedule, as run: Vim-Ti's file says half of the rate.
_base_ = "./vim-tiny_upernet_4xb4-160k_ade20k-512x512.py"
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=60000)]
train_cfg = dict(max_iters=60000)
auto_scale_lr = dict(base_batch_size=32)
