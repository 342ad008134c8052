"""The reference's descriptions of VMamba."""

from __future__ import annotations

from mmvssm.models import VMamba

from ..compare import MalformedCase, UnsupportedCase
from .common import Reading, choice, read_dt_rank, read_hierarchical

# The reference chooses the mixer by a string: a core, then suffixes.
CORES = {
    "v0": dict(gate=True, force_fp32=True),
    "v01": dict(force_fp32=True),
    "v05": dict(force_fp32=False),
    "v051d": dict(force_fp32=False, scan="unidi"),
    "v052d": dict(force_fp32=False, scan="bidi"),
    "v052dc": dict(force_fp32=False, type="CascadeSS2D"),
    "m0": dict(type="ScalarDecaySS2D"),
}
# other and older names of the same functions
CORE_SYNONYMS = {
    "v0seq": "v0",
    "v02": "v01",
    "v03": "v01",
    "v2": "v01",
    "v04": "v05",
    "v1": "v05",
    "v3": "v05",
    "v4": "v05",
    "v31d": "v051d",
    "v32d": "v052d",
    "v32dc": "v052dc",
}
SUFFIXES = {
    "noz": dict(gate=False),
    "nozact": dict(gate_act=False),
    "oact": dict(out_act=True),
    "no32": dict(force_fp32=False),
    "onnone": dict(out_norm="none"),
    "ondwconv3": dict(out_norm="dwconv3"),
    "oncnorm": dict(out_norm="cnorm"),
    "onsoftmax": dict(out_norm="softmax"),
    "onsigmoid": dict(out_norm="sigmoid"),
}
BROKEN_CORES = ("xv1a", "xv2a", "xv3a")
STEMS = {"v1": "patch", "v2": "conv"}
DOWNSAMPLES = {"v1": "patch_merge", "v2": "conv2", "v3": "conv3"}


def read_forward_type(forward_type: str) -> dict:
    """Arguments of :class:`mmvssm.models.SS2D` for a string such as ``'v05_ondwconv3_noz'``.

    Args:
        forward_type: A core and suffixes in any order.

    Raises:
        MalformedCase: If a part is unknown, given twice, or contradicts another.
        UnsupportedCase: If the reference itself cannot run it.
    """
    core, *suffixes = forward_type.split("_")
    core = CORE_SYNONYMS.get(core, core)
    if core in BROKEN_CORES:
        raise UnsupportedCase(
            f"forward_type {forward_type!r}: core {core} has no working reference"
        )
    if core not in CORES:
        raise MalformedCase(f"forward_type {forward_type!r}: unknown core {core!r}")
    if core == "v0" and suffixes:
        raise MalformedCase(f"forward_type {forward_type!r}: this core takes no suffix")
    arguments = {"gate": True, **CORES[core]}
    given: set[str] = set()
    for suffix in suffixes:
        if suffix not in SUFFIXES:
            raise MalformedCase(f"forward_type {forward_type!r}: unknown suffix {suffix!r}")
        for name, value in SUFFIXES[suffix].items():
            if name in given:
                raise MalformedCase(f"forward_type {forward_type!r}: {name} is set twice")
            given.add(name)
            arguments[name] = value
    if core == "m0" and arguments["gate"]:
        raise UnsupportedCase(
            f"forward_type {forward_type!r}: m0 with a gate has no working reference"
        )
    return arguments


def read_vmamba(build: dict) -> dict:
    """Arguments of :class:`mmvssm.models.VMamba` for the reference's description of a model.

    Args:
        build: The case's ``build``: the options of the reference in its own words.

    Raises:
        KeyError: If a required option is missing.
        MalformedCase: If an option has an unknown value.
        UnsupportedCase: If it is a variant that VMamba does not build.
    """
    dims = list(build["dims"])
    if build.get("norm_eps", 1e-5) != 1e-5:
        raise UnsupportedCase(f"norm_eps {build['norm_eps']}: norms have 1e-5")
    if build.get("post_norm"):
        raise UnsupportedCase("post_norm: blocks are pre-norm")
    mixer = None
    if build["ssm_ratio"] > 0:
        mixer = dict(
            read_forward_type(build["forward_type"]),
            d_state=build["d_state"],
            ssm_ratio=build["ssm_ratio"],
            dt_rank=read_dt_rank(build.get("dt_rank"), dims),
            d_conv=build.get("conv_kernel", 3) or 0,
            conv_bias=build.get("conv_bias", True),
            act=build.get("ssm_act", "silu"),
            ssm_init=build.get("ssm_init", "v0"),
        )
    arch = dict(
        embed_dims=dims,
        depths=build["depths"],
        stem=choice("patch_embed", build["patch_embed"], STEMS),
        downsample=choice("downsample", build["downsample"], DOWNSAMPLES),
        patch_size=build.get("patch_size", 4),
        patch_norm=build.get("patch_norm", True),
        norm=build.get("norm_layer", "ln"),
        mlp_ratio=build.get("mlp_ratio", 0.0),
        mlp_act=build.get("mlp_act", "gelu"),
        gated_mlp=build.get("gmlp", False),
        pos_embed=bool(build.get("pos_embed", False)),
        mixer=mixer,
    )
    return dict(
        arch=arch,
        in_channels=build.get("in_chans", 3),
        odd_size="crop" if str(build.get("odd_size", "")).startswith("crop") else "pad",
        img_size=build.get("img_size", 224),
        drop_path_rate=build.get("drop_path_rate", 0.0),
    )


def read(build: dict) -> Reading:
    """How to build the model of a case."""
    return read_hierarchical("vmamba", VMamba, read_vmamba(build), build["num_classes"])
