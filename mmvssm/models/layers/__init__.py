from .ablations import CascadeSS2D, FlippedCascadeSS2D, ScalarDecaySS2D
from .attention import Attention
from .basic import (
    ACTIVATIONS,
    ChannelGate,
    DepthwiseConv,
    DropPath,
    LayerScale,
    Mlp,
    PointwiseConv,
    RMSNorm,
    SequenceConv,
    SqueezeExcite,
    apply_norm,
    apply_out_norm,
    build_norm,
    build_out_norm,
)
from .block import CheckpointedBlock, MixerBlock, PlainLayer, build_layer_scale, norm_stream
from .freezing import FreezeMixin
from .half_scan import HalfScanMixer
from .loading import ForeignWeightsError, LoadingMixin, drop_parts
from .mamba_mixer import MambaMixer
from .merges import SEARCH_DIRECTIONS, RouteMerge, top_directions
from .ms2d import MS2D
from .patch import ConvDownsample, ConvStem, MapConv, PatchEmbed, PatchMerging
from .pos_embed import PositionGrid
from .scans import Route, SelectiveScans, build_mixer, check_mixer
from .ss2d import SS2D
from .windows import from_windows, to_windows

__all__ = [
    "ACTIVATIONS",
    "MS2D",
    "SEARCH_DIRECTIONS",
    "SS2D",
    "Attention",
    "CascadeSS2D",
    "ChannelGate",
    "CheckpointedBlock",
    "ConvDownsample",
    "ConvStem",
    "DepthwiseConv",
    "DropPath",
    "FlippedCascadeSS2D",
    "ForeignWeightsError",
    "FreezeMixin",
    "HalfScanMixer",
    "LayerScale",
    "LoadingMixin",
    "MambaMixer",
    "MapConv",
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
    "SequenceConv",
    "SqueezeExcite",
    "apply_norm",
    "apply_out_norm",
    "build_layer_scale",
    "build_mixer",
    "build_norm",
    "build_out_norm",
    "check_mixer",
    "drop_parts",
    "from_windows",
    "norm_stream",
    "to_windows",
    "top_directions",
]
