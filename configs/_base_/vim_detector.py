# Shared settings of Vim's detectors. The neck makes all levels from one map: the stream after the
# last layer, without a norm; no class token.
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

# Everything except the position embedding is decayed, as in the published runs, whose rule for
# norms did not know the classes of these norms.
vim_optim_wrapper = dict(
    constructor="mmvssm.LayerDecayOptimWrapperConstructor",
    optimizer=dict(weight_decay=0.1),
    paramwise_cfg=dict(
        layer_decay_rate=0.837,
        custom_keys=dict(norm=dict(decay_mult=1.0), pos_embed=dict(decay_mult=0.0)),
    ),
)
