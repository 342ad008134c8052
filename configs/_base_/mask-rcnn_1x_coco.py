# Mask R-CNN, 12 epochs: Swin's config, whose recipe VMamba follows. A variant adds its
# backbone and, unless they are Swin-T's, the channels of the neck.
#
# Parameters with "norm" in their name, that is all norms, are not decayed. (VMamba's own code
# numbers the norms of the stem and of its second downsampling, and so decayed them.)
_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"

# instead of Swin's weights: a variant names the released classifier that its backbone starts from
pretrained = None

model = dict(backbone=dict(_delete_=True, init_cfg=dict(type="Pretrained", prefix="backbone.")))

# inferencers load weights before they build the model, so mmvssm:// must be registered by then
__import__("mmvssm").register_scheme()
