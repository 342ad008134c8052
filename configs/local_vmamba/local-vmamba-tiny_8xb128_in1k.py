_base_ = "../_base_/local-vmamba_in1k.py"
model = dict(backbone=dict(type="mmvssm.LocalVMamba", arch="tiny", drop_path_rate=0.1))
