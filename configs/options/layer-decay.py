# Layer-wise learning rates for a plain backbone (Vim, LocalVim) that starts from trained weights:
# each layer learns with 0.8 times the rate of the next one.
optim_wrapper = dict(
    constructor="mmvssm.LayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay_rate=0.8),
)
