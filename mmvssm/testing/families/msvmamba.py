"""The reference's descriptions of MSVMamba."""

from __future__ import annotations

from mmvssm.models import MSVMamba

from ..compare import MalformedCase, UnsupportedCase
from .common import Reading, choice, read_dt_rank, read_hierarchical

# What the generation decides; the other words of a description only say it again.
GENERATIONS = {
    "v1": dict(stem="patch", downsample="patch_merge", mlp_ratio=2.0, mlp_norm="pre"),
    "v3": dict(stem="conv", downsample="conv3", mlp_ratio=4.0, mlp_norm="post"),
}
MIXERS = {
    "v1": dict(norm_position="before_sum", upsample="bilinear", full_first=False, force_fp32=True),
    "v3": dict(norm_position="after_sum", upsample="nearest", full_first=True, force_fp32=False),
}
GATES = {"silu": True, "none": False}
# What all published models have.
FIXED = dict(full_scans=1, small_scans=3, se_reduction=8)


def read_msvmamba(build: dict) -> dict:
    """Arguments of :class:`mmvssm.models.MSVMamba` for the reference's description of a model.

    Args:
        build: The case's ``build``.

    Raises:
        KeyError: If a required option is missing.
        MalformedCase: If an option has an unknown value or contradicts the generation.
        UnsupportedCase: If it is a variant that MSVMamba does not build.
    """
    generation = build["generation"]
    arch = choice("generation", generation, GENERATIONS)
    mixer = MIXERS[generation]
    full = 0 if mixer["full_first"] else 1
    index = dict(full=full, small=1 - full)
    if build.get("param_index", index) != index:
        raise MalformedCase(
            f"param_index must be {index} in generation {generation!r}, got {build['param_index']}"
        )
    for name, value in FIXED.items():
        if build.get(name, value) != value:
            raise UnsupportedCase(f"{name} {build[name]}: only {value} is built")
    dims = list(build["dims"])
    mixer = dict(
        mixer,
        d_state=build["d_state"],
        ssm_ratio=build["ssm_ratio"],
        dt_rank=read_dt_rank(build.get("dt_rank"), dims),
        d_conv=build.get("d_conv", 3),
        gate=choice("gate", build["gate"], GATES),
    )
    return dict(
        arch=dict(arch, embed_dims=dims, depths=build["depths"], mixer=mixer),
        in_channels=build.get("in_chans", 3),
    )


def read(build: dict) -> Reading:
    """How to build the model of a case."""
    return read_hierarchical("msvmamba", MSVMamba, read_msvmamba(build), build["num_classes"])
