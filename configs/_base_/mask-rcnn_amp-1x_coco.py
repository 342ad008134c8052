# mask-rcnn_1x_coco.py in mixed precision, in which EfficientVMamba and LocalVMamba were trained.
_base_ = "./mask-rcnn_1x_coco.py"

optim_wrapper = dict(type="AmpOptimWrapper")
