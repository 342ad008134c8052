_base_ = "../_base_/in1k_300e.py"
# a lower rate than the others': 3e-4 for 512 images
model = dict(
    backbone=dict(type="mmvssm.MSVMamba", arch="v3-base", drop_path_rate=0.5),
    head=dict(in_channels=1024),
)
optim_wrapper = dict(optimizer=dict(lr=6e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=1 / 600, end=20, convert_to_iter_based=True),
    dict(type="mmvssm.CosineAnnealingLR", eta_min=6e-6, begin=20, convert_to_iter_based=True),
]
