_base_ = "../_base_/vim_stride8_in1k.py"
# The authors published a result but no script: this is the recipe of the smaller ones.
model = dict(backbone=dict(arch="base-stride8"), head=dict(in_channels=768))
load_from = "mmvssm://vim-base?weights=online"
