"""The reference's descriptions of EfficientVMamba."""

from __future__ import annotations

from mmvssm.models import EfficientVMamba

from ..compare import MalformedCase, UnsupportedCase
from .common import Reading, choice, read_dt_rank, read_hierarchical

DOWNSAMPLES = {"patch_merging": "patch_merge", "conv2x2": "conv2"}
# what the reference has in one form only
FIXED = dict(scan_step=2, norm="LayerNorm eps 1e-5", block_gate_ratio=0.125)


def read_efficient_vmamba(build: dict) -> dict:
    """Arguments of :class:`mmvssm.models.EfficientVMamba` for the description of a model.

    Args:
        build: The case's ``build``: the options of the reference in its own words.

    Raises:
        KeyError: If a required option is missing.
        MalformedCase: If an option has an unknown value, or two contradict each other.
        UnsupportedCase: If it is a variant that EfficientVMamba does not build.
    """
    dims, kinds = list(build["dims"]), build["stage_types"]
    for name, value in FIXED.items():
        if build.get(name, value) != value:
            raise UnsupportedCase(f"{name} {build[name]!r}: only {value!r} is built")
    if build.get("embed_dim", dims[0]) != dims[0]:
        raise MalformedCase(f"embed_dim {build['embed_dim']} is not the first of dims {dims}")
    # ranks are given for the stages that scan
    scanned = [dim for dim, kind in zip(dims, kinds) if kind == "es2d"]
    mixer = dict(
        d_state=build["d_state"],
        ssm_ratio=build["ssm_ratio"],
        dt_rank=read_dt_rank(build.get("dt_rank"), scanned),
        d_conv=build.get("d_conv", 3),
    )
    arch = dict(
        embed_dims=dims,
        depths=build["depths"],
        stage_types=kinds,
        downsample=choice("downsample", build["downsample"], DOWNSAMPLES),
        patch_size=build.get("patch_size", 4),
        mixer=mixer,
        mlp_ratio=build.get("mlp_ratio", 0.0),
        expand_ratio=build.get("ir_expand", 4),
        se_ratio=build.get("ir_se_ratio", 0.125),
    )
    return dict(arch=arch, in_channels=build.get("in_chans", 3), drop_path_rate=0.0)


def read(build: dict) -> Reading:
    """How to build the model of a case."""
    options = read_efficient_vmamba(build)
    return read_hierarchical("efficient_vmamba", EfficientVMamba, options, build["num_classes"])
