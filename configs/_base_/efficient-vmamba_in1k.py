# EfficientVMamba on ImageNet-1k, following the logs of the released weights. The authors' files
# have VMamba's recipe instead, with which a user of their code reports 74.7 for tiny.
_base_ = "./local-mamba_in1k.py"

optim_wrapper = dict(optimizer=dict(lr=2e-3))

param_scheduler = [
    dict(type="LinearLR", start_factor=5e-5, end=21),
    dict(type="mmvssm.CosineAnnealingLR", eta_min=1e-6, begin=20, convert_to_iter_based=True),
]

# the buffers of batch norms are averaged as well
custom_hooks = [dict(_base_.custom_hooks[0], update_buffers=True)]
