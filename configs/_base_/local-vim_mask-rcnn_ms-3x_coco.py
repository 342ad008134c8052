# LocalVim in Mask R-CNN: the usual schedule and heads, with the optimizer and drop path of the
# published long training (see ../local_vim/mask-rcnn_local-vim-tiny_fpn_lsj-184k_coco.py).
_base_ = ["./mask-rcnn_ms-3x_coco.py", "./local-vim_detector.py"]

model = _base_.local_vim_detector
optim_wrapper = _base_.local_vim_optim_wrapper
