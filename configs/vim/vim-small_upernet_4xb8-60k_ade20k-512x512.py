# The authors' repository: what its script runs (Vim-S's file says a layer decay of 0.92).
# The configured layer decay affected only patch and position embeddings;
# ../_base_/vim_detector.py shows how to apply it to all layers, in place of these factors.
_base_ = "./vim-small_upernet_4xb4-160k_ade20k-512x512.py"
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            "patch_embed": dict(lr_mult=0.95**25),
            "patch_embed.conv1.bias": dict(lr_mult=0.95**25),
            "pos_embed": dict(lr_mult=0.95**25),
        }
    ),
)
# the decay starts at the first iteration, during the warm-up (the last value is reached one
# iteration before `end`)
param_scheduler = [
    dict(_base_.param_scheduler[0], end=1501),
    dict(_base_.param_scheduler[1], begin=0, end=60001),
]
train_cfg = dict(max_iters=60000)
auto_scale_lr = dict(base_batch_size=32)
