# FSDP: weights, gradients and optimizer state are sharded over the processes, and gathered one
# block of the backbone at a time. Checkpoints hold the full model, as those of one GPU do.
runner_type = "FlexibleRunner"
strategy = dict(
    type="mmvssm.FSDPStrategy",
    state_dict_cfg="full",
    model_wrapper=dict(type="MMFullyShardedDataParallel", auto_wrap_policy="mmvssm.wrap_blocks"),
)
