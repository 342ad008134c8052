# The search for LocalVim's scan directions on handwritten digits, like the one for LocalVMamba.
_base_ = "./local-vim-micro_digits-cls.py"

model = dict(backbone=dict(directions="search"))
train_cfg = dict(max_epochs=8)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"merge.weights": dict(lr_mult=10)}))
custom_hooks = [dict(type="mmvssm.DirectionSearchHook", interval=46)]
