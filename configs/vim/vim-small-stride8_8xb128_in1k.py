_base_ = "../_base_/vim_stride8_in1k.py"
model = dict(backbone=dict(arch="small-stride8"), head=dict(in_channels=384))
load_from = "mmvssm://vim-small?weights=online"
