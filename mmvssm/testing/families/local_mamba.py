"""The reference's descriptions of LocalMamba's two networks, LocalVMamba and LocalVim."""

from __future__ import annotations

from mmvssm.models import LocalVMamba

from ..compare import MalformedCase, UnsupportedCase
from .common import OUTPUT_ORDERS, Reading, choice, read_hierarchical, whole_output
from .vim import read_local_vim

# what the reference has in one form only
FIXED = dict(mlp=None, norm_eps=1e-5)


def read_local_vmamba(build: dict) -> dict:
    """Arguments of :class:`mmvssm.models.LocalVMamba` for the description of a model.

    Args:
        build: The case's ``build``: the options of the reference in its own words; its
            ``d_state`` is without effect there.

    Raises:
        KeyError: If a required option is missing.
        MalformedCase: If an option has an unknown value.
        UnsupportedCase: If it is a variant that LocalVMamba does not build.
    """
    for name, value in FIXED.items():
        if build.get(name, value) != value:
            raise UnsupportedCase(f"{name} {build[name]!r}: only {value!r} is built")
    arch = dict(
        embed_dims=list(build["dims"]),
        depths=build["depths"],
        patch_size=build.get("patch_size", 4),
        mixer=dict(
            d_state=build.get("ssm_d_state", 16),
            ssm_ratio=build.get("ssm_ratio", 2.0),
            d_conv=build.get("ssm_conv", 3),
            conv_bias=build.get("ssm_conv_bias", True),
        ),
    )
    directions = build["directions"]
    return dict(
        arch=arch,
        directions="search" if directions is None else directions,
        output_order=choice("v_reverse", build.get("v_reverse", "inverse"), OUTPUT_ORDERS),
        in_channels=build.get("in_chans", 3),
        out_indices=build.get("out_indices") or range(len(build["depths"])),
        drop_path_rate=build.get("drop_path_rate", 0.0),
    )


def read(build: dict) -> Reading:
    """How to build the model of a case: LocalVMamba has ``depths``, LocalVim a ``depth``."""
    if "depths" in build:
        return read_hierarchical(
            "local_vmamba",
            LocalVMamba,
            read_local_vmamba(build),
            build["num_classes"],
            patch_embed=("patch_embed", whole_output),
            block0=("stages.0.blocks.0", whole_output),
        )
    if "depth" in build:
        return read_local_vim(build)
    raise MalformedCase("build must have 'depths' (LocalVMamba) or 'depth' (LocalVim)")
