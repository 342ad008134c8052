# MambaVision in UperNet, 160k iterations, in mixed precision. A variant adds its arch and the
# channels of the two heads.
#
# One window covers the maps of stages 3 and 4, which are zero-padded to its size; images with a
# side above 1024 pixels get several. The published configs set other drop-path rates, which the
# published code ignores: it uses 0.2.
_base_ = "./upernet_160k_ade20k-512x512.py"

model = dict(
    backbone=dict(type="mmvssm.MambaVision", window_sizes=(64, 32), drop_path_rate=0.2),
)

optim_wrapper = dict(type="AmpOptimWrapper")
