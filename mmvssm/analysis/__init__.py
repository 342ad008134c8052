"""What models do: the routes they scan along, what they see, what a decision rests on."""

from .cam import ClassActivation, draw_cam, grad_cam
from .images import Pixels, choose_images, images_of, noise_images, read_image
from .influence import Influence, InfluenceMap, draw_influence, influence, influence_matrix
from .models import build_backbone, load_backbone, load_model
from .output import check_outputs, save_figure, write_outputs
from .receptive_field import ReceptiveField, draw_receptive_fields, receptive_field
from .routes import Route, draw_routes, routes_of
from .scan_records import KINDS, LayerScans, RouteScan, record_scans

__all__ = [
    "KINDS",
    "ClassActivation",
    "Influence",
    "InfluenceMap",
    "LayerScans",
    "Pixels",
    "ReceptiveField",
    "Route",
    "RouteScan",
    "build_backbone",
    "check_outputs",
    "choose_images",
    "draw_cam",
    "draw_influence",
    "draw_receptive_fields",
    "draw_routes",
    "grad_cam",
    "images_of",
    "influence",
    "influence_matrix",
    "load_backbone",
    "load_model",
    "noise_images",
    "read_image",
    "receptive_field",
    "record_scans",
    "routes_of",
    "save_figure",
    "write_outputs",
]
