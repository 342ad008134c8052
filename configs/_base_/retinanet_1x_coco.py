# RetinaNet, 12 epochs: PVT's config. A variant adds its backbone and the channels of the neck's
# three maps.
_base_ = "mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py"

# of the first stage there is no map: its norm would be trained by nothing
model = dict(
    backbone=dict(
        _delete_=True,
        out_indices=(1, 2, 3),
        init_cfg=dict(type="Pretrained", prefix="backbone."),
    ),
    neck=dict(start_level=0),
)

# inferencers load weights before they build the model, so mmvssm:// must be known by then
__import__("mmvssm").register_scheme()
