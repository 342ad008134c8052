_base_ = "../_base_/vim_stride8_in1k.py"
model = dict(backbone=dict(arch="tiny-stride8"), head=dict(in_channels=192))
load_from = "mmvssm://vim-tiny?weights=online"
