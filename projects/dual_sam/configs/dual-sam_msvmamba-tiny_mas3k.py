_base_ = "dual-sam_vmamba-tiny_mas3k.py"
model = dict(backbone=dict(backbone=dict(type="mmvssm.MSVMamba", arch="tiny")))
