# LocalVMamba on handwritten digits: at least 90 % top-1 within two minutes on two CPU cores.
_base_ = ["./vmamba-micro_digits-cls.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="mmvssm.LocalVMamba",
        arch=dict(embed_dims=32, depths=(1, 1, 2, 1), patch_size=2),
        directions=[["h", "h_flip", "w2", "w2_flip"]] * 5,
        drop_path_rate=0.05,
        out_indices=(3,),
    )
)
train_cfg = dict(max_epochs=8)
