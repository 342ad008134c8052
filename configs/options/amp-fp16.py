# Mixed precision in float16: forward and backward in half precision where that is safe, weights
# and optimizer in float32, losses scaled so that gradients do not underflow.
optim_wrapper = dict(type="AmpOptimWrapper", dtype="float16", loss_scale="dynamic")
