# LocalVim on ImageNet-1k: LocalMamba's trainer in full precision, without clipping and averaging,
# as in the authors' file and command (the paper mentions an average of decay 0.9999).
# A variant adds its name and the width of the head.
_base_ = "./local-mamba_in1k.py"

model = dict(backbone=dict(_delete_=True, type="mmvssm.LocalVim", drop_path_rate=0.1), neck=None)

# No decay of 1-D parameters, biases (dt_projs_bias holds those of four layers) and embeddings.
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.04),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys=dict(
            pos_embed=dict(decay_mult=0.0),
            cls_token=dict(decay_mult=0.0),
            dt_projs_bias=dict(decay_mult=0.0),
        ),
    ),
)

custom_hooks = []
