# Mixed precision in bfloat16, whose range is float32's: losses need no scaling.
optim_wrapper = dict(type="AmpOptimWrapper", dtype="bfloat16", loss_scale=1.0)
