# Vim with a patch every 8 pixels: 30 epochs from the released weights of stride 16, as trained and
# not averaged, which a variant names. (For a training of your own, tools/convert_ema.py --weights
# online makes such a file.)
# The position embedding is resized when it is loaded. The rate is constant: the published runs
# configured a cosine whose first and last values are the same.
_base_ = "./vim_in1k.py"

model = dict(backbone=dict(drop_path_rate=0.0))
optim_wrapper = dict(optimizer=dict(lr=1e-5, weight_decay=1e-8))
param_scheduler = None
train_cfg = dict(max_epochs=30)
