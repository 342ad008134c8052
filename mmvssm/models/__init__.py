"""Backbones, necks and layers; importing this module registers them.

The registry is :data:`mmvssm.registry.MODELS`.
"""

from .backbones import EfficientVMamba, LocalVim, LocalVMamba, MSVMamba, Vim, VMamba
from .layers import MS2D, SS2D, MambaMixer
from .necks import SimpleFeaturePyramid

__all__ = [
    "MS2D",
    "SS2D",
    "EfficientVMamba",
    "LocalVMamba",
    "LocalVim",
    "MSVMamba",
    "MambaMixer",
    "SimpleFeaturePyramid",
    "VMamba",
    "Vim",
]
