# LocalVim on handwritten digits: at least 90 % top-1 within two minutes on two CPU cores.
_base_ = ["./vmamba-micro_digits-cls.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="mmvssm.LocalVim",
        arch=dict(embed_dims=64, num_layers=3, patch_size=4),
        img_size=32,
        drop_path_rate=0.05,
    ),
    neck=None,
    head=dict(in_channels=64),
)
