# Vim with a patch every 8 pixels: 30 epochs from the released weights of stride 16, as trained and
# not averaged, which a variant names. (tools/convert_ema.py --weights online makes such a file of
# a training of one's own.)
# The position embedding is resized when it is loaded. The rate is constant: the published runs
# asked for a cosine whose first and last value are the same.
_base_ = "./vim_in1k.py"

model = dict(backbone=dict(drop_path_rate=0.0))
optim_wrapper = dict(optimizer=dict(lr=1e-5, weight_decay=1e-8))
param_scheduler = None
train_cfg = dict(max_epochs=30)
