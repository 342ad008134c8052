"""Backbones, necks and layers; importing this module registers them.

The registry is :data:`mmvssm.registry.MODELS`.
"""

from .backbones import EfficientVMamba, LocalVMamba, MSVMamba, VMamba
from .layers import MS2D, SS2D
from .necks import SimpleFeaturePyramid

__all__ = [
    "MS2D",
    "SS2D",
    "EfficientVMamba",
    "LocalVMamba",
    "MSVMamba",
    "SimpleFeaturePyramid",
    "VMamba",
]
