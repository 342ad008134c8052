_base_ = "../_base_/in1k_300e.py"
# The released weights say 0.1 in their name (dp01), upstream's files 0.2.
model = dict(backbone=dict(type="mmvssm.VMamba", arch="v0-tiny", drop_path_rate=0.1))
custom_hooks = []  # trained without averaging the weights
