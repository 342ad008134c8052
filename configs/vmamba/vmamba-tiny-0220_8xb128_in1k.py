_base_ = "../_base_/in1k_300e.py"
model = dict(backbone=dict(type="mmvssm.VMamba", arch="tiny-0220", drop_path_rate=0.2))
