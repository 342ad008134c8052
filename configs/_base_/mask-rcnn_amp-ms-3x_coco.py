# As mask-rcnn_ms-3x_coco.py, in mixed precision: so EfficientVMamba and LocalVMamba were trained.
_base_ = "./mask-rcnn_ms-3x_coco.py"

optim_wrapper = dict(type="AmpOptimWrapper")
