# One of our configs, whose VMamba uses the project's mixer.
_base_ = __import__("mmvssm").config_path("demo/vmamba-micro_digits-cls.py")
custom_imports = dict(imports=["gated_scan"])
model = dict(backbone=dict(arch=dict(mixer=dict(type="GatedSS2D"))))
