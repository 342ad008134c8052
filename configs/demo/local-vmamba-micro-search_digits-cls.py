# The search for LocalVMamba's scan directions on handwritten digits: a network that scans in all
# eight directions. tools/analysis_tools/search_result.py tells which ones it prefers.
_base_ = ["./vmamba-micro_digits-cls.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="mmvssm.LocalVMamba",
        arch=dict(embed_dims=32, depths=(1, 1, 2, 1), patch_size=2),
        directions="search",
        drop_path_rate=0.05,
        out_indices=(3,),
    )
)
train_cfg = dict(max_epochs=8)
# In such a short training, preferences learn ten times as fast as the rest.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"merge.weights": dict(lr_mult=10)}))
custom_hooks = [dict(type="mmvssm.DirectionSearchHook", interval=46)]
