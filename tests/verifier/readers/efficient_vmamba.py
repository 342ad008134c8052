"""The reference's descriptions of EfficientVMamba."""

from mmvssm.models import EfficientVMamba

from ..cases import Case, register_reader
from ..compare import MalformedCase
from ..models import ModelSpec, hierarchical
from .options import choice, read_dt_rank, require, take

DOWNSAMPLES = {"patch_merging": "patch_merge", "conv2x2": "conv2"}


def arguments(build: dict) -> dict:
    """Return the arguments of :class:`mmvssm.models.EfficientVMamba`."""
    require(build, scan_step=[2], norm=["LayerNorm eps 1e-5"], block_gate_ratio=[0.125])
    dims, kinds = list(build["dims"]), build["stage_types"]
    if build.get("embed_dim", dims[0]) != dims[0]:
        raise MalformedCase(f"embed_dim {build['embed_dim']} is not the first of dims {dims}")
    # ranks are given for the stages that scan
    scanned = [dim for dim, kind in zip(dims, kinds) if kind == "es2d"]
    mixer = take(build, "d_state", "ssm_ratio", d_conv=3)
    arch = dict(
        take(build, "depths", "stage_types", patch_size=4, mlp_ratio=0.0),
        embed_dims=dims,
        downsample=choice(build, "downsample", DOWNSAMPLES),
        expand_ratio=build.get("ir_expand", 4),
        se_ratio=build.get("ir_se_ratio", 0.125),
        mixer=dict(mixer, dt_rank=read_dt_rank(build, scanned)),
    )
    return dict(arch=arch, in_channels=build.get("in_chans", 3), drop_path_rate=0.0)


@register_reader("efficient_vmamba")
def read(case: Case) -> ModelSpec:
    """Read a case of EfficientVMamba."""
    build = case.meta["build"]
    options = arguments(build)
    return hierarchical("efficient_vmamba", EfficientVMamba, options, build["num_classes"])
