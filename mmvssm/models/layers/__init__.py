from .ablations import CascadeSS2D, FlippedCascadeSS2D, ScalarDecaySS2D
from .basic import (
    ACTIVATIONS,
    ChannelGate,
    DepthwiseConv,
    Mlp,
    PointwiseConv,
    RMSNorm,
    SqueezeExcite,
    apply_norm,
    build_norm,
)
from .block import CheckpointedBlock, MixerBlock, PlainLayer, norm_stream
from .freezing import FreezeMixin
from .loading import LoadingMixin
from .mamba_mixer import MambaMixer
from .merges import SEARCH_DIRECTIONS, RouteMerge, top_directions
from .ms2d import MS2D
from .patch import ConvDownsample, ConvStem, PatchEmbed, PatchMerging
from .pos_embed import PositionGrid
from .scans import Route, SelectiveScans, build_mixer, check_mixer
from .ss2d import SS2D

__all__ = [
    "ACTIVATIONS",
    "MS2D",
    "SEARCH_DIRECTIONS",
    "SS2D",
    "CascadeSS2D",
    "ChannelGate",
    "CheckpointedBlock",
    "ConvDownsample",
    "ConvStem",
    "DepthwiseConv",
    "FlippedCascadeSS2D",
    "FreezeMixin",
    "LoadingMixin",
    "MambaMixer",
    "MixerBlock",
    "Mlp",
    "PatchEmbed",
    "PatchMerging",
    "PlainLayer",
    "PointwiseConv",
    "PositionGrid",
    "RMSNorm",
    "Route",
    "RouteMerge",
    "ScalarDecaySS2D",
    "SelectiveScans",
    "SqueezeExcite",
    "apply_norm",
    "build_mixer",
    "build_norm",
    "check_mixer",
    "norm_stream",
    "top_directions",
]
