# The recipe of the published code, including its bugs: scrambled values, gates that are never
# trained, crossed skips, votes of two steps that look one step away; images in a fixed order,
# grey masks, weight decay on everything.
_base_ = "_base_/marine_animals.py"

model = dict(
    backbone=dict(type="DualViTSAM", pretrained="checkpoints/sam_vit_b_01ec64.pth"),
    loss=dict(type="MutualConnectivityLoss", mask_value=255),
)
train_pipeline = _base_.train_pipeline
train_pipeline[1] = dict(type="LoadMask", binary=False)
train_dataloader = dict(sampler=dict(shuffle=False), dataset=dict(pipeline=train_pipeline))
val_evaluator = test_evaluator = dict(blank_is_full=True)
