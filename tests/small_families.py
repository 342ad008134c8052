"""Small networks of every family, in its variants, for tests of what all backbones guarantee."""

from dataclasses import dataclass, field

import pytest

import mmvssm.models


@dataclass(frozen=True)
class Family:
    """A small network of a family, to build in many ways.

    Attributes:
        type: Its registered name.
        arch: Its fields.
        first_arch: First name that the message on an unknown one lists.
        smallest: Side of the smallest image.
        options: Further arguments.
    """

    type: str
    arch: dict
    first_arch: str
    smallest: int
    options: dict = field(default_factory=dict)

    @property
    def backbone(self):
        return getattr(mmvssm.models, self.type)

    def build(self, **options):
        arch = {**self.arch, **options.pop("arch", {})}
        return self.backbone(arch, **{**self.options, **options})


@dataclass(frozen=True)
class Hierarchical(Family):
    """Four stages.

    Attributes:
        stem: ``'floor'`` or ``'ceil'``: how a side is divided by the stem's four.
        downsample: Likewise by each of the later twos.
    """

    stem: str = "floor"
    downsample: str = "ceil"
    bad_arguments = (
        (dict(arch=dict(depths=(1, 1))), "arch must have the field 'embed_dims'"),
        (dict(embed_dims=(8, 16)), "embed_dims must name 4 widths"),
        (dict(out_indices=(0, 4)), r"out_indices must hold stages 0 to 3.*\(0, 4\)"),
        (dict(out_indices=()), "out_indices must hold stages 0 to 3"),
        (dict(depths=4), "depths must list the blocks of every stage, got 4"),
        (dict(depths=(1, 2.5, 1, 1)), r"depths\[1\] must be a whole number of at least 0, got 2.5"),
        (
            dict(downsample="patch_merge", odd_size="stretch"),
            "odd_size must be one of 'pad', 'crop'",
        ),
    )

    def shapes(self, size):
        halve = {"floor": lambda side: side // 2, "ceil": lambda side: (side + 1) // 2}
        size = [halve[self.stem](halve[self.stem](side)) for side in size]
        for i in range(4):
            yield (16 * 2**i, *size)
            size = [halve[self.downsample](side) for side in size]

    @staticmethod
    def blocks(model):
        return [block for stage in model.stages for block in stage.blocks]

    @staticmethod
    def frozen(frozen_stages):
        names = [f"stages.{i}." for i in range(frozen_stages + 1)]
        names += [f"norm{i}." for i in range(frozen_stages + 1)]
        return [*names, "patch_embed."] if frozen_stages >= 0 else []


@dataclass(frozen=True)
class Windowed(Hierarchical):
    """Four stages, two of them with windows, whose stem and downsampling are fixed."""

    bad_arguments = (
        *Hierarchical.bad_arguments[:-1],
        (
            dict(num_heads=(4,)),
            r"num_heads must have one number for each of the 2 stages with windows, got \(4,\)",
        ),
        (dict(num_heads=(3, 4)), "num_heads must divide the 64 channels, got 3"),
        (
            dict(window_sizes=7),
            "window_sizes must have one number for each of the 2 stages with windows, got 7",
        ),
        (dict(window_sizes=(7, 0)), r"window_sizes\[1\] must be a whole number of at least 1"),
        (dict(stem_dims=0), "stem_dims must be a whole number of at least 1, got 0"),
    )


@dataclass(frozen=True)
class Plain(Family):
    """Four layers on patches of eight pixels, whose outputs are taken as maps."""

    pads: bool = False
    bad_arguments = (
        (dict(arch=dict(embed_dims=8)), "arch must have the field 'num_layers'"),
        (dict(out_indices=(0, 4)), r"out_indices must hold layers -4 to 3.*\(0, 4\)"),
        (dict(out_indices=()), "out_indices must hold layers -4 to 3"),
        (dict(num_layers=0), "num_layers must be a whole number of at least 1, got 0"),
        (dict(patch_size=0), "patch_size must be a whole number of at least 1, got 0"),
        (dict(stride=0), "stride must be a whole number of at least 1, got 0"),
        (dict(out_type="pooled"), "out_type must be one of 'cls_token'.*'pooled'"),
        (dict(cls_token="tail"), "cls_token must be one of 'none'.*'tail'"),
        (dict(norm="bn"), "norm must be one of 'rms', 'ln'"),
        (dict(odd_size="stretch"), "odd_size must be one of 'crop', 'pad'"),
        (dict(img_size=4), "img_size must be at least 8.*4"),
    )

    def shapes(self, size):
        return [(16, *((side + 7 * self.pads) // 8 for side in size))] * 4

    @staticmethod
    def blocks(model):
        return list(model.layers)

    @staticmethod
    def frozen(frozen_stages):
        names = [f"layers.{i}." for i in range(frozen_stages + 1)]
        names += [f"norm{i}." for i in range(frozen_stages + 1)]
        embeddings = ["patch_embed.", "pos_embed", "cls_token"]
        return [*names, *embeddings] if frozen_stages >= 0 else []


VMAMBA = dict(embed_dims=16, depths=(1, 1, 2, 1), mlp_ratio=2)
FIRST_VMAMBA = dict(
    embed_dims=16,
    depths=(1, 1, 2, 1),
    stem="patch",
    downsample="patch_merge",
    mlp_ratio=0,
    mixer=dict(d_state=2, ssm_ratio=2.0, gate=True, conv_bias=True, force_fp32=True),
)
V3_MSVMAMBA = dict(
    embed_dims=16,
    depths=(1, 1, 2, 1),
    stem="conv",
    downsample="conv3",
    mlp_norm="post",
    mixer=dict(ssm_ratio=1.0, norm_position="after_sum", upsample="nearest", full_first=True),
)
MICRO = dict(embed_dims=16, depths=(1, 1, 2, 1), mixer=dict(d_state=2))
WINDOWS = dict(embed_dims=16, depths=(1, 1, 3, 1), stem_dims=8, mixer=dict(d_state=2))
PLAIN = dict(embed_dims=16, num_layers=4, patch_size=8, mixer=dict(d_state=2))
MAPS = dict(out_indices=(0, 1, 2, 3), out_type="featmap", img_size=64)
FAMILIES = {
    "VMamba": Hierarchical("VMamba", VMAMBA, "v0-tiny", 1, stem="ceil"),
    "VMamba v0": Hierarchical("VMamba", FIRST_VMAMBA, "v0-tiny", 4),
    "VMamba bn": Hierarchical("VMamba", dict(VMAMBA, norm="bn"), "v0-tiny", 1, stem="ceil"),
    "VMamba crop": Hierarchical(
        "VMamba", FIRST_VMAMBA, "v0-tiny", 32, dict(odd_size="crop"), downsample="floor"
    ),
    "EfficientVMamba": Hierarchical("EfficientVMamba", MICRO, "tiny", 4),
    "MSVMamba": Hierarchical("MSVMamba", dict(MICRO, mixer={}), "nano", 4),
    "MSVMamba v3": Hierarchical("MSVMamba", V3_MSVMAMBA, "nano", 1, stem="ceil"),
    "LocalVMamba": Hierarchical(
        "LocalVMamba", MICRO, "tiny", 4, dict(directions=[("h", "v_flip", "w2", "w7_flip")] * 5)
    ),
    "MambaVision": Windowed("MambaVision", WINDOWS, "tiny", 1, stem="ceil"),
    "MambaVision scaled": Windowed(
        "MambaVision",
        dict(WINDOWS, layer_scale=1e-5, conv_layer_scale=1e-5, window_sizes=(4, 3)),
        "tiny",
        1,
        dict(out_norm="bn"),
        stem="ceil",
    ),
    "LocalVMamba search": Hierarchical("LocalVMamba", MICRO, "tiny", 4, dict(directions="search")),
    "Vim": Plain("Vim", PLAIN, "tiny", 8, MAPS),
    "Vim first release": Plain(
        "Vim", PLAIN, "tiny", 8, dict(MAPS, cls_token="none", rope=True, divide_out=False)
    ),
    "LocalVim": Plain("LocalVim", PLAIN, "tiny", 8, MAPS, pads=True),
    "LocalVim middle": Plain(
        "LocalVim", PLAIN, "tiny", 8, dict(MAPS, cls_token="middle", rope=False), pads=True
    ),
}
#: One of each type.
TYPES = {name: family for name, family in FAMILIES.items() if name == family.type}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
types = pytest.mark.parametrize("family", TYPES.values(), ids=TYPES.keys())
hierarchical = pytest.mark.parametrize(
    "family",
    [pytest.param(f, id=name) for name, f in FAMILIES.items() if isinstance(f, Hierarchical)],
)
