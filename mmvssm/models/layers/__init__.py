from .basic import ACTIVATIONS, DepthwiseConv, Mlp, apply_norm, build_norm
from .patch import ConvDownsample, ConvStem, PatchEmbed, PatchMerging
from .ss2d import SS2D

__all__ = [
    "ACTIVATIONS",
    "SS2D",
    "ConvDownsample",
    "ConvStem",
    "DepthwiseConv",
    "Mlp",
    "PatchEmbed",
    "PatchMerging",
    "apply_norm",
    "build_norm",
]
