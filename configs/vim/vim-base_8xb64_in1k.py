# The recipe of Vim-B was not published. This is Vim-S's.
_base_ = "./vim-small_8xb64_in1k.py"
model = dict(backbone=dict(arch="base"), head=dict(in_channels=768))
