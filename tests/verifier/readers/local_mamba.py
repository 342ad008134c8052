"""The reference's descriptions of LocalMamba's two networks, LocalVMamba and LocalVim."""

from mmvssm.models import LocalVMamba

from ..cases import Case, register_reader
from ..compare import MalformedCase
from ..models import ModelSpec, hierarchical
from .options import OUTPUT_ORDERS, choice, require, take
from .vim import read_local_vim


def arguments(build: dict) -> dict:
    """Return the arguments of :class:`mmvssm.models.LocalVMamba`.

    The option ``d_state`` is without effect in the reference, which reads ``ssm_d_state``.
    """
    require(build, mlp=[None], norm_eps=[1e-5])
    mixer = dict(
        take(build, ssm_ratio=2.0),
        d_state=build.get("ssm_d_state", 16),
        d_conv=build.get("ssm_conv", 3),
        conv_bias=build.get("ssm_conv_bias", True),
    )
    arch = dict(take(build, "depths", patch_size=4), embed_dims=list(build["dims"]), mixer=mixer)
    return dict(
        take(build, drop_path_rate=0.0),
        arch=arch,
        directions="search" if build["directions"] is None else build["directions"],
        output_order=choice(build, "v_reverse", OUTPUT_ORDERS, "inverse"),
        in_channels=build.get("in_chans", 3),
        out_indices=build.get("out_indices") or range(len(build["depths"])),
    )


@register_reader("local_mamba")
def read(case: Case) -> ModelSpec:
    """Read a case of LocalVMamba, which has ``depths``, or of LocalVim, which has a ``depth``."""
    build = case.meta["build"]
    if "depth" in build:
        return read_local_vim(build)
    if "depths" not in build:
        raise MalformedCase("build must have 'depths' (LocalVMamba) or 'depth' (LocalVim)")
    return hierarchical(
        "local_vmamba",
        LocalVMamba,
        arguments(build),
        build["num_classes"],
        outputs=dict(patch_embed="patch_embed", block0="stages.0.blocks.0"),
    )
