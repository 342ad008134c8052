# What Vim's detectors share. The neck makes all levels of one map: the stream behind the last
# layer, without a norm; no class token.
vim_detector = dict(
    backbone=dict(
        type="mmvssm.Vim",
        drop_cls_token=True,
        out_type="featmap",
        out_norm=False,
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", prefix="backbone."),
    ),
    neck=dict(type="mmvssm.SimpleFeaturePyramid"),
)

# All but the position embedding is decayed: so it was in the published runs, whose norms are of
# classes that their rule for norms did not know.
vim_optim_wrapper = dict(
    constructor="mmvssm.LayerDecayOptimWrapperConstructor",
    optimizer=dict(weight_decay=0.1),
    paramwise_cfg=dict(
        layer_decay_rate=0.837,
        custom_keys=dict(norm=dict(decay_mult=1.0), pos_embed=dict(decay_mult=0.0)),
    ),
)
