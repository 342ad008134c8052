_base_ = "../_base_/vim_in1k.py"
model = dict(backbone=dict(arch="tiny", drop_path_rate=0.0), head=dict(in_channels=192))
