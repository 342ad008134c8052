"""What models do: the routes they scan along, what they see, what a decision rests on."""

from .images import Pixels, choose_images, images_of, noise_images, read_image
from .models import build_backbone, load_backbone, load_model
from .output import PICTURES, save_picture, save_results
from .receptive_field import ReceptiveField, draw_receptive_fields, receptive_field
from .routes import Route, draw_routes, routes_of

__all__ = [
    "PICTURES",
    "Pixels",
    "ReceptiveField",
    "Route",
    "build_backbone",
    "choose_images",
    "draw_receptive_fields",
    "draw_routes",
    "images_of",
    "load_backbone",
    "load_model",
    "noise_images",
    "read_image",
    "receptive_field",
    "routes_of",
    "save_picture",
    "save_results",
]
