# What LocalVim's detectors share. The neck makes all levels of one map: what the last layer adds
# to the stream, normed. (The layers keep the RMSNorm of the weights that they start from; as run,
# they applied LayerNorm to them: norm="ln".)
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

# All but the position embedding is decayed, norms as well. As run: of the layer decay of 0.7 that
# was asked for, only patch and position embeddings saw anything. vim_detector.py shows how to give
# it to all layers, which is instead of these factors.
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
