# Mixed precision in float16: forward and backward in half precision where that is safe, weights
# and optimizer in float32, losses scaled as long as gradients would vanish.
optim_wrapper = dict(type="AmpOptimWrapper", dtype="float16", loss_scale="dynamic")
