# Mask R-CNN, 36 epochs, many scales: Swin's config, whose recipe VMamba follows. A variant adds its
# backbone and, where they are not Swin-T's, the channels of the neck.
#
# Parameters with "norm" in their name are not decayed: all norms. (VMamba's own code calls
# those of the stem and of its second downsampling by numbers and so decayed them.)
_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py"

# Swin's weights, gone. A backbone that starts from weights of its own says
# init_cfg=dict(type="Pretrained", checkpoint=FILE, prefix="backbone.")
pretrained = None

model = dict(backbone=dict(_delete_=True))

# inferencers load weights before they build the model, so mmvssm:// must be known by then
__import__("mmvssm").register_scheme()
