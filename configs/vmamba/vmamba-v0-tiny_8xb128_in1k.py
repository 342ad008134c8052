_base_ = "../_base_/in1k_300e.py"
model = dict(backbone=dict(type="mmvssm.VMamba", arch="v0-tiny", drop_path_rate=0.2))
custom_hooks = []  # trained without averaging the weights
