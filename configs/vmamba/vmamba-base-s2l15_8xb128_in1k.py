_base_ = "../_base_/in1k_300e.py"
model = dict(
    backbone=dict(type="mmvssm.VMamba", arch="base-s2l15", drop_path_rate=0.6),
    head=dict(in_channels=1024),
)
