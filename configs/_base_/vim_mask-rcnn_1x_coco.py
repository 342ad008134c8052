# Vim in Mask R-CNN: the usual schedule, with the decay factors and drop path of the published
# Cascade Mask R-CNN (see ../vim/cascade-mask-rcnn_vim-tiny_fpn_lsj-184k_coco.py).
_base_ = ["./mask-rcnn_1x_coco.py", "./vim_detector.py"]

model = _base_.vim_detector
optim_wrapper = _base_.vim_optim_wrapper
