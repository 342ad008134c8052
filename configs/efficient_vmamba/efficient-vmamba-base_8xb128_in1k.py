_base_ = "../_base_/efficient-vmamba_in1k.py"
model = dict(backbone=dict(type="mmvssm.EfficientVMamba", arch="base", drop_path_rate=0.1))
