# RetinaNet, 12 epochs: PVT's config. A variant adds its backbone and the channels of the neck's
# three input maps.
_base_ = "mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py"

# the map of the first stage is not used, and its norm would get no gradient
model = dict(
    backbone=dict(
        _delete_=True,
        out_indices=(1, 2, 3),
        init_cfg=dict(type="Pretrained", prefix="backbone."),
    ),
    neck=dict(start_level=0),
)

# inferencers load weights before they build the model, so mmvssm:// must be registered by then
__import__("mmvssm").register_scheme()
