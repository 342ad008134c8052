# MambaVision on handwritten digits: at least 90 % top-1 within two minutes on two CPU cores.
_base_ = ["./vmamba-micro_digits-cls.py"]

# windows as large as the maps of these small images
model = dict(
    backbone=dict(
        _delete_=True,
        type="mmvssm.MambaVision",
        arch=dict(
            embed_dims=32,
            depths=(1, 1, 2, 1),
            num_heads=(4, 8),
            window_sizes=(2, 1),
            stem_dims=16,
        ),
        drop_path_rate=0.05,
        out_indices=(3,),
        out_norm="bn",
    )
)
