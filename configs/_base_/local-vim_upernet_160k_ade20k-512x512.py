# LocalVim in UperNet: four maps of stride 16 (what layers add to the stream, normalised), without a
# neck. A variant adds its name and the channels of the two heads. (The layers keep the RMSNorm of
# the weights that they start from; the published runs applied LayerNorm: norm="ln".)
_base_ = "./upernet_160k_ade20k-512x512.py"

model = dict(
    backbone=dict(
        type="mmvssm.LocalVim",
        out_indices=(4, 9, 14, 19),
        out_type="featmap",
        feature="mixer",
        out_norm="ln",
        drop_path_rate=0.1,
    ),
    auxiliary_head=dict(in_index=3),
)

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(pos_embed=dict(decay_mult=0.0))))
