_base_ = "../_base_/local-vim_in1k.py"
model = dict(backbone=dict(arch="tiny-unsearched"), head=dict(in_channels=192))
