# DeepSpeed, ZeRO stage 2, in bfloat16: gradients and optimizer state are sharded over the
# processes. tools/train.py passes the config's gradient clipping on to DeepSpeed.
runner_type = "FlexibleRunner"
strategy = dict(
    type="DeepSpeedStrategy",
    bf16=dict(enabled=True),
    zero_optimization=dict(stage=2, overlap_comm=True, contiguous_gradients=True),
)
optim_wrapper = dict(type="DeepSpeedOptimWrapper")
