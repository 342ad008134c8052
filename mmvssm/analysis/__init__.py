"""Analysis of models: routes, influence, receptive fields, Grad-CAM, FLOPs, time and more."""

from .accuracy import evaluate, main_metrics, pipeline_at
from .animation import animate_routes
from .benchmark import compare, draw_benchmark
from .cam import ClassActivation, draw_cam, grad_cam
from .curves import Curve, draw_curves, read_curves
from .flops import Complexity, count_flops, draw_complexity
from .images import Pixels, choose_images, images_of, noise_images, read_image
from .influence import Influence, InfluenceMap, draw_influence, influence, influence_matrix
from .models import build_backbone, build_without_weights, image_size, load_backbone, load_model
from .networks import run_network
from .output import check_outputs, save_figure, write_outputs
from .probe import Features, Probe, draw_probe, extract_features, train_probe
from .receptive_field import ReceptiveField, draw_receptive_fields, receptive_field
from .routes import Route, draw_routes, name_layers, routes_of
from .scaling import draw_scaling, scale
from .scan_records import KINDS, LayerScans, RouteScan, record_scans

__all__ = [
    "KINDS",
    "ClassActivation",
    "Complexity",
    "Curve",
    "Features",
    "Influence",
    "InfluenceMap",
    "LayerScans",
    "Pixels",
    "Probe",
    "ReceptiveField",
    "Route",
    "RouteScan",
    "animate_routes",
    "build_backbone",
    "build_without_weights",
    "check_outputs",
    "choose_images",
    "compare",
    "count_flops",
    "draw_benchmark",
    "draw_cam",
    "draw_complexity",
    "draw_curves",
    "draw_influence",
    "draw_probe",
    "draw_receptive_fields",
    "draw_routes",
    "draw_scaling",
    "evaluate",
    "extract_features",
    "grad_cam",
    "image_size",
    "images_of",
    "influence",
    "influence_matrix",
    "load_backbone",
    "load_model",
    "main_metrics",
    "name_layers",
    "noise_images",
    "pipeline_at",
    "read_curves",
    "read_image",
    "receptive_field",
    "record_scans",
    "routes_of",
    "run_network",
    "save_figure",
    "scale",
    "train_probe",
    "write_outputs",
]
