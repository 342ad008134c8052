"""What models do and cost: routes of their layers, FLOPs, time and memory."""

from .accuracy import evaluate, pipeline_at
from .benchmark import compare, draw_benchmark
from .curves import Curve, draw_curves, read_curves
from .flops import Complexity, count_flops
from .models import build_backbone, build_without_weights, image_size
from .networks import run_network
from .output import check_outputs, save_figure, write_outputs
from .probe import Features, Probe, draw_probe, extract_features, train_probe
from .routes import Route, draw_routes, routes_of
from .scaling import draw_scaling, scale

__all__ = [
    "Complexity",
    "Curve",
    "Features",
    "Probe",
    "Route",
    "build_backbone",
    "build_without_weights",
    "check_outputs",
    "compare",
    "count_flops",
    "draw_benchmark",
    "draw_curves",
    "draw_probe",
    "draw_routes",
    "draw_scaling",
    "evaluate",
    "extract_features",
    "image_size",
    "pipeline_at",
    "read_curves",
    "routes_of",
    "run_network",
    "save_figure",
    "scale",
    "train_probe",
    "write_outputs",
]
