# UperNet, 160k iterations: Swin's config, whose recipe VMamba follows. A variant adds its
# backbone and, unless they are Swin-T's, the channels of the two heads.
#
# Parameters with "norm" in their name, that is all norms of the backbone, are not decayed.
# (VMamba's own code numbers some of them, and so decayed them.)
_base_ = "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"

# instead of Swin's weights: a variant names the released classifier that its backbone starts from
checkpoint_file = None

model = dict(backbone=dict(_delete_=True, init_cfg=dict(type="Pretrained", prefix="backbone.")))

train_dataloader = dict(batch_size=4)

auto_scale_lr = dict(enable=False, base_batch_size=16)

# inferencers load weights before they build the model, so mmvssm:// must be registered by then
__import__("mmvssm").register_scheme()
