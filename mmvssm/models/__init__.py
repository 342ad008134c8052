"""Backbones, necks and layers; importing this module registers them.

The registry is :data:`mmvssm.registry.MODELS`.
"""

from . import backbones
from .backbones import *  # noqa: F403
from .layers import MS2D, SS2D, CascadeSS2D, MambaMixer, ScalarDecaySS2D
from .necks import SimpleFeaturePyramid

__all__ = [
    "MS2D",
    "SS2D",
    "CascadeSS2D",
    "MambaMixer",
    "ScalarDecaySS2D",
    "SimpleFeaturePyramid",
    *backbones.__all__,
]
