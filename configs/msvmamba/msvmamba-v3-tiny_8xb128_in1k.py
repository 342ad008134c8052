_base_ = "../_base_/in1k_300e.py"
model = dict(backbone=dict(type="mmvssm.MSVMamba", arch="v3-tiny", drop_path_rate=0.2))
