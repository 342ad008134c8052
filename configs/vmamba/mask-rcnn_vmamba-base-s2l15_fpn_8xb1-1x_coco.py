_base_ = "./mask-rcnn_vmamba-base-s2l15_fpn_1x_coco.py"
# The authors' second run, which they call a mistake: half of the images per step at the same rate.
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
