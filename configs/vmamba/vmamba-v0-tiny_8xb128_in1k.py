_base_ = "../_base_/in1k_300e.py"
# The name of the released weights says 0.1 (dp01), upstream's files 0.2.
model = dict(backbone=dict(type="mmvssm.VMamba", arch="v0-tiny", drop_path_rate=0.1))
custom_hooks = []  # trained without averaging the weights
