"""What models do and cost: routes of their layers, parameters and FLOPs."""

from .flops import Complexity, count_flops
from .models import build_backbone, build_without_weights, image_size
from .output import check_outputs, save_figure, write_outputs
from .routes import Route, draw_routes, routes_of

__all__ = [
    "Complexity",
    "Route",
    "build_backbone",
    "build_without_weights",
    "check_outputs",
    "count_flops",
    "draw_routes",
    "image_size",
    "routes_of",
    "save_figure",
    "write_outputs",
]
