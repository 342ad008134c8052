_base_ = "../_base_/vim_stride8_in1k.py"
model = dict(backbone=dict(arch="small-stride8"), head=dict(in_channels=384))
load_from = "work_dirs/vim-small_8xb64_in1k/epoch_300.pth"
