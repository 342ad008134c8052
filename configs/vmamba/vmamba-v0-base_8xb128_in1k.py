_base_ = "../_base_/in1k_300e.py"
# The name of the released weights says 0.6 (dp06), upstream's file 0.5.
model = dict(
    backbone=dict(type="mmvssm.VMamba", arch="v0-base", drop_path_rate=0.6),
    head=dict(in_channels=1024),
)
