# Vim in UperNet, with the paper's recipe (appendix B): rate, decay and schedule of the hierarchical
# backbones. Network, drop path and test are those of the authors' files, which run 60k iterations
# (see ../vim/vim-tiny_upernet_4xb8-60k_ade20k-512x512.py). A variant adds its name, features and
# channels.
_base_ = "./upernet_160k_ade20k-512x512.py"

model = dict(
    backbone=dict(
        type="mmvssm.Vim",
        drop_cls_token=True,
        out_indices=(5, 11, 17, 23),
        out_type="featmap",
        out_norm=False,
        drop_path_rate=0.1,
    ),
    neck=dict(type="mmseg.Feature2Pyramid"),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)

# No decay of 1-D parameters and biases, but of position embeddings, as in the authors' runs.
optim_wrapper = dict(
    paramwise_cfg=dict(
        _delete_=True,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={
            "dt_projs_bias": dict(decay_mult=0.0),
            "patch_embed.conv1.bias": dict(decay_mult=0.0),
        },
    )
)
