"""The reference's descriptions of MambaVision."""

from mmvssm.models import MambaVision
from mmvssm.models.backbones.mambavision import CONV_STAGES

from ..cases import Case, register_reader
from ..compare import UnsupportedCase
from ..models import ModelSpec, hierarchical
from .options import read_dt_rank, require, take

#: What is built in one form only; several of these words describe it for readers.
ONE_FORM = dict(
    qkv_bias=[True],
    qk_norm=[False],
    conv_stages=[[0, 1]],
    expand=[1],
    dt_bias=["added twice: in dt_proj and in the scan"],
    conv1d_bias=[False],
    stem=["conv3x3 s2 p1 no bias - BN eps 1e-4 - ReLU, twice"],
    conv_block=["conv3x3+bias - BN eps 1e-5 - GELU tanh - conv3x3+bias - BN eps 1e-5, residual"],
    downsample=["conv3x3 s2 p1 no bias, no norm"],
    norm=["LayerNorm eps 1e-5"],
    final_norm=["BatchNorm eps 1e-5"],
    mlp_act=["GELU erf"],
)


def arguments(build: dict) -> dict:
    """Return the arguments of :class:`mmvssm.models.MambaVision`."""
    depths = build["depths"]
    attention = [[]] * CONV_STAGES
    attention += [list(range((depth + 1) // 2, depth)) for depth in depths[CONV_STAGES:]]
    require(build, **ONE_FORM, attention_blocks=[attention])
    dims = list(build["dims"])
    if any(dim % 2 for dim in dims[CONV_STAGES:]):
        raise UnsupportedCase(f"dims {dims}: mixers halve an even number of channels")
    # given for all stages, of which the last scan and attend
    given = {
        name: build[name][CONV_STAGES:]
        for name in ("num_heads", "window_size", "dt_rank", "d_inner")
        if name in build
    }
    require(given, d_inner=[[dim // 2 for dim in dims[CONV_STAGES:]]])
    arch = dict(
        take(build, "depths", "stem_dim", mlp_ratio=4.0, layer_scale=None),
        embed_dims=dims,
        conv_layer_scale=build.get("layer_scale_conv"),
        num_heads=given["num_heads"],
        window_sizes=given["window_size"],
        mixer=dict(
            take(build, d_state=8, d_conv=3), dt_rank=read_dt_rank(given, dims[CONV_STAGES:])
        ),
    )
    arch["stem_dims"] = arch.pop("stem_dim")
    return dict(arch=arch, in_channels=build.get("in_chans", 3), drop_path_rate=0.0)


@register_reader("mambavision")
def read(case: Case) -> ModelSpec:
    """Read a case of MambaVision."""
    build = case.meta["build"]
    return hierarchical(
        "mambavision",
        MambaVision,
        arguments(build),
        build["num_classes"],
        classifier=dict(out_norm="bn"),
    )
