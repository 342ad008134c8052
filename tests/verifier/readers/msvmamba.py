"""The reference's descriptions of MSVMamba."""

from mmvssm.models import MSVMamba

from ..cases import Case, register_reader
from ..compare import MalformedCase
from ..models import ModelSpec, hierarchical
from .options import choice, read_dt_rank, require, take

# What the generation determines; other words of a description only repeat it.
GENERATIONS = {
    "v1": dict(stem="patch", downsample="patch_merge", mlp_ratio=2.0, mlp_norm="pre"),
    "v3": dict(stem="conv", downsample="conv3", mlp_ratio=4.0, mlp_norm="post"),
}
MIXERS = {
    "v1": dict(norm_position="before_sum", upsample="bilinear", full_first=False, force_fp32=True),
    "v3": dict(norm_position="after_sum", upsample="nearest", full_first=True, force_fp32=False),
}
GATES = {"silu": True, "none": False}


def arguments(build: dict) -> dict:
    """Return the arguments of :class:`mmvssm.models.MSVMamba`."""
    arch = choice(build, "generation", GENERATIONS)
    mixer = choice(build, "generation", MIXERS)
    index = dict(full=0, small=1) if mixer["full_first"] else dict(full=1, small=0)
    if build.get("param_index", index) != index:
        raise MalformedCase(
            f"param_index must be {index} in generation {build['generation']!r},"
            f" got {build['param_index']}"
        )
    require(build, full_scans=[1], small_scans=[3], se_reduction=[8])
    dims = list(build["dims"])
    mixer = dict(
        mixer,
        **take(build, "d_state", "ssm_ratio", d_conv=3),
        dt_rank=read_dt_rank(build, dims),
        gate=choice(build, "gate", GATES),
    )
    arch = dict(arch, embed_dims=dims, depths=build["depths"], mixer=mixer)
    return dict(arch=arch, in_channels=build.get("in_chans", 3))


@register_reader("msvmamba")
def read(case: Case) -> ModelSpec:
    """Read a case of MSVMamba."""
    build = case.meta["build"]
    return hierarchical("msvmamba", MSVMamba, arguments(build), build["num_classes"])
