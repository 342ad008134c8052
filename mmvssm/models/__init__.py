"""Backbones, necks and layers; importing this module registers them.

The registry is :data:`mmvssm.registry.MODELS`.
"""

from .backbones import EfficientVMamba, VMamba
from .layers import SS2D
from .necks import SimpleFeaturePyramid

__all__ = ["SS2D", "EfficientVMamba", "SimpleFeaturePyramid", "VMamba"]
