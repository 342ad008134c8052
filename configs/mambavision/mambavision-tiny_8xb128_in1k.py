_base_ = "../_base_/mambavision_in1k.py"
model = dict(
    backbone=dict(arch="tiny", drop_path_rate=0.2),
    head=dict(in_channels=640),
)
