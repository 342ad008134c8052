"""Backbones and layers; importing this module registers them in :data:`mmvssm.registry.MODELS`."""

from .backbones import VMamba
from .layers import SS2D

__all__ = ["SS2D", "VMamba"]
