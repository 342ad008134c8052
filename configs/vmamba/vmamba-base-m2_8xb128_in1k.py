_base_ = "../_base_/in1k_300e.py"
model = dict(
    backbone=dict(type="mmvssm.VMamba", arch="base-m2", drop_path_rate=0.3),
    head=dict(in_channels=1024),
)
