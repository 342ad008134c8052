_base_ = "../_base_/upernet_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        type="mmvssm.MSVMamba",
        arch="tiny",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="mmvssm://msvmamba-tiny?weights=online"),
    )
)
