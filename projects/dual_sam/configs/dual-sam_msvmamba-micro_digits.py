_base_ = "dual-sam_vmamba-micro_digits.py"
model = dict(backbone=dict(backbone=dict(type="mmvssm.MSVMamba")))
