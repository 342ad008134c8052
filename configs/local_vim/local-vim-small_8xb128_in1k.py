_base_ = "../_base_/local-vim_in1k.py"
model = dict(backbone=dict(arch="small"), head=dict(in_channels=384))
