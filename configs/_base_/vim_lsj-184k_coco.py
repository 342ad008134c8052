# COCO with large-scale jittering, 184,375 iterations of 64 images: the long training of Vim's and
# LocalVim's detectors. Configs that inherit it add the model, weight decay and rates, and pad
# images to 1024 x 1024 pixels, in tests too, in the way of the respective published code.
_base_ = "mmdet::common/lsj-100e_coco-instance.py"

train_dataloader = dict(
    batch_size=8,
    sampler=dict(type="InfiniteSampler"),
    # the plain dataset: the inherited one is repeated to make longer epochs
    dataset=dict(_base_.train_dataloader.dataset.dataset, _delete_=True, _scope_="mmdet"),
)

test_pipeline = [
    dict(step, scale=(1024, 1024)) if step.type == "Resize" else step
    for step in _base_.test_pipeline
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999)),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, end=250),
    dict(type="MultiStepLR", by_epoch=False, milestones=[163889, 177546], gamma=0.1),
]
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=184375, val_interval=10000)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=10000))
log_processor = dict(by_epoch=False)
auto_scale_lr = dict(enable=False, base_batch_size=64)

# inferencers load weights before they build the model, so mmvssm:// must be registered by then
__import__("mmvssm").register_scheme()
