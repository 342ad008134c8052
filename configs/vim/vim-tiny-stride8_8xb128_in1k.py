_base_ = "../_base_/vim_stride8_in1k.py"
model = dict(backbone=dict(arch="tiny-stride8"), head=dict(in_channels=192))
load_from = "work_dirs/vim-tiny_8xb128_in1k/epoch_300.pth"
