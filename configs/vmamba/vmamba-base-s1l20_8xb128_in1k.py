_base_ = "../_base_/in1k_300e.py"
model = dict(
    backbone=dict(type="mmvssm.VMamba", arch="base-s1l20", drop_path_rate=0.5),
    head=dict(in_channels=1024),
)
