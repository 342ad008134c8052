# Weights, gradients and optimizer state shared out over the processes, one block of the
# backbone at a time gathered (FSDP). Checkpoints hold the whole model, as those of one GPU do.
runner_type = "FlexibleRunner"
strategy = dict(
    type="mmvssm.FSDPStrategy",
    state_dict_cfg="full",
    model_wrapper=dict(type="MMFullyShardedDataParallel", auto_wrap_policy="mmvssm.wrap_blocks"),
)
