_base_ = "../_base_/local-vmamba_in1k.py"
# The search for scan directions, whose result tools/analysis_tools/search_result.py reads: 100
# epochs, with the weights as trained, not averaged.
model = dict(
    backbone=dict(type="mmvssm.LocalVMamba", arch="tiny-search", drop_path_rate=0.1),
    head=dict(in_channels=256),
)
train_cfg = dict(max_epochs=100)
custom_hooks = [dict(type="mmvssm.DirectionSearchHook")]
