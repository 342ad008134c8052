_base_ = "../_base_/efficient-vmamba_in1k.py"
# 16x128 images per step, as published: on 8 GPUs two batches are accumulated. With 16 GPUs set
# accumulative_counts to 1, and do not use --auto-scale-lr.
model = dict(
    backbone=dict(type="mmvssm.EfficientVMamba", arch="tiny", drop_path_rate=0.1),
    head=dict(in_channels=384),
)
optim_wrapper = dict(accumulative_counts=2)
custom_hooks = [dict(_base_.custom_hooks[0], interval=2)]
