"""Selective-scan ops: compiled CPU and CUDA kernels with a PyTorch reference behind both."""

from __future__ import annotations

import importlib.util
import sys

from . import library, routes
from .backend import backend, built_devices, current_backend
from .extension import EXTENSION
from .info import info
from .reference import (
    selective_scan_2d_reference,
    selective_scan_chunked,
    selective_scan_reference,
)
from .route_set import RouteSet
from .scan2d import selective_scan_2d
from .selective_scan import selective_scan

__all__ = [
    "RouteSet",
    "backend",
    "built_devices",
    "current_backend",
    "info",
    "library",
    "routes",
    "selective_scan",
    "selective_scan_2d",
    "selective_scan_2d_reference",
    "selective_scan_chunked",
    "selective_scan_reference",
]

# mmcv.utils.ext_loader.load_ext looks for extensions under mmcv's name.
if EXTENSION is not None:
    sys.modules.setdefault("mmcv._vssm_ext", EXTENSION)

# Expose the scan beside mmcv's own ops. Importing mmcv without compiled ops raises.
if importlib.util.find_spec("mmcv") is not None:
    try:
        import mmcv.ops as _mmcv_ops
    except ImportError:
        _mmcv_ops = None
    if _mmcv_ops is not None and not hasattr(_mmcv_ops, "selective_scan"):
        _mmcv_ops.selective_scan = selective_scan
