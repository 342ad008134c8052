# Shared settings of LocalVim's detectors. The neck makes all levels from one map: what the last
# layer adds to the stream, normalised. (The layers keep the RMSNorm of the weights that they start
# from; the published runs applied LayerNorm: norm="ln".)
local_vim_detector = dict(
    backbone=dict(
        type="mmvssm.LocalVim",
        out_type="featmap",
        feature="mixer",
        out_norm="ln",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", prefix="backbone."),
    ),
    neck=dict(type="mmvssm.SimpleFeaturePyramid"),
)

# Everything except the position embedding is decayed, norms as well. As in the published runs, the
# configured layer decay of 0.7 affects only patch and position embeddings. vim_detector.py shows
# how to apply it to all layers, in place of these factors.
local_vim_optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys=dict(
            norm=dict(decay_mult=1.0),
            patch_embed=dict(lr_mult=0.7**13),
            pos_embed=dict(lr_mult=0.7**13, decay_mult=0.0),
        )
    ),
    clip_grad=dict(max_norm=35),
)
