# Mixed precision in bfloat16, which has the range of float32, so losses need no scaling.
optim_wrapper = dict(type="AmpOptimWrapper", dtype="bfloat16", loss_scale=1.0)
