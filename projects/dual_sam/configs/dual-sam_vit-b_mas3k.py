# Recommended: the paper's network, images in random order and randomly mirrored, binary masks, no
# weight decay on gates, norms and biases, and a warm-up.
_base_ = "_base_/marine_animals.py"

model = dict(
    backbone=dict(
        type="DualViTSAM",
        scrambled_values=False,
        train_gates=True,
        pretrained="checkpoints/sam_vit_b_01ec64.pth",
    ),
    crossed_skips=False,
    consistent_votes=True,
)
train_pipeline = [
    *_base_.train_pipeline[:-1],
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={"_gates": dict(decay_mult=0.0), "pos_embed": dict(decay_mult=0.0)},
    ),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=300),
    dict(type="MultiStepLR", milestones=[10, 20], gamma=0.1, by_epoch=True),
]
