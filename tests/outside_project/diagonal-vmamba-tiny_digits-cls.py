# One of our configs, inherited from outside, with the project's own backbone.
_base_ = __import__("mmvssm").config_path("demo/vmamba-micro_digits-cls.py")
custom_imports = dict(imports=["diagonal_vmamba"])
model = dict(
    backbone=dict(_delete_=True, type="mmvssm.DiagonalVMamba", out_indices=(3,)),
    head=dict(in_channels=128),
)
