"""The reference's descriptions of the plain backbones, Vim and LocalVim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mmengine.utils import to_2tuple
from torch import Tensor, nn

from mmvssm.families import FAMILIES as KEY_MAPS
from mmvssm.families import Family as KeyMap
from mmvssm.families.layers import plain_dense
from mmvssm.families.pyramids import FEATURE2PYRAMID, FEATURE2PYRAMID_OF_8
from mmvssm.models import LocalVim, SimpleFeaturePyramid, Vim

from ..compare import UnsupportedCase
from .common import OUTPUT_ORDERS, Reading, choice, whole_output

# what is built in one form only, with the values that the reference calls it by
FIXED = {
    "norm_epsilon": (1e-5,),
    "init_layer_scale": (None,),
    "if_bidirectional": (False,),
    "if_random_cls_token_position": (False,),
    "if_random_token_rank": (False,),
    "flip_img_sequences_ratio": (-1.0, 0, None),
    "pt_hw_seq_len": (14,),
    "fpn_scales": ([4.0, 2.0, 1.0, 0.5],),
}
SCANS = {"v2": True, "none": False}
LAST_FEATURES = {"none": "mixer", "add": "residual", "add & norm": "residual"}
# segmentors' pyramids by patch size: scales of the four maps, and rules for their names
PYRAMIDS = {16: ((4, 2, 1, 0.5), FEATURE2PYRAMID), 8: ((2, 1, 0.5, 0.25), FEATURE2PYRAMID_OF_8)}
POOLS = {"mean": "avg_featmap", "none": "last_token", "all": "raw", "max": "raw"}


class PlainClassifier(nn.Module):
    """Backbone with one output, and a linear head.

    Args:
        backbone: Returns ``(B, C)``, or a sequence ``(B, L, C)``.
        num_classes: Classes of the head.
        max_pool: Take the maximum of the logits over the sequence.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, max_pool: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.ModuleDict({"fc": nn.Linear(backbone.embed_dims, num_classes)})
        self.max_pool = max_pool

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Image -> ``pooled``, what the backbone returns, and ``logits``."""
        (pooled,) = self.backbone(x)
        logits = self.head["fc"](pooled)
        return {"pooled": pooled, "logits": logits.amax(1) if self.max_pool else logits}


class PlainDense(nn.Module):
    """Backbone with several outputs, and a pyramid.

    Args:
        backbone: Returns maps or sequences.
        names: Names of its outputs.
        neck: From the backbone's outputs to the maps of the pyramid; None for none.
        neck_names: Names of these maps.
    """

    def __init__(
        self,
        backbone: nn.Module,
        names: list[str],
        neck: nn.Module | None = None,
        neck_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.names = backbone, names
        self.neck, self.neck_names = neck, neck_names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Image -> outputs by name."""
        outs = self.backbone(x)
        named = dict(zip(self.names, outs))
        if self.neck is not None:
            named.update(zip(self.neck_names, self.neck(outs)))
        return named


def read_plain(build: dict) -> dict:
    """Arguments of both backbones for the reference's description of one.

    Raises:
        KeyError: If a required option is missing.
        MalformedCase: If an option has an unknown value.
        UnsupportedCase: If it is a variant that is not built.
    """
    for name, values in FIXED.items():
        if name in build and build[name] not in values:
            raise UnsupportedCase(f"{name} {build[name]!r}: only {values[0]!r} is built")
    rope = build.get("if_rope", False)
    if build.get("if_rope_residual", rope) != rope:
        raise UnsupportedCase(
            "if_rope_residual differs from if_rope: built is rope on both or none"
        )
    img_size = to_2tuple(build.get("img_size", 224))
    if rope and img_size[0] != img_size[1]:
        raise UnsupportedCase(f"img_size {img_size}: the reference's rope has square tables")
    place = "none"
    if build.get("if_cls_token", False):
        place = "middle" if build.get("use_middle_cls_token", False) else "head"
        if build.get("use_double_cls_token", False):
            place = "double"
    patch_size = build.get("patch_size", 16)
    arch = dict(
        embed_dims=build["embed_dim"],
        num_layers=build["depth"],
        patch_size=patch_size,
        stride=build.get("stride", patch_size),
        cls_token=place,
        pos_embed=build.get("if_abs_pos_embed", False),
        rope=rope,
        norm="rms" if build.get("rms_norm", False) else "ln",
        mixer=dict(
            d_state=build.get("d_state", 16),
            ssm_ratio=build.get("expand", 2),
            dt_rank=build.get("dt_rank"),
            d_conv=build.get("d_conv", 4),
        ),
    )
    return dict(
        arch=arch,
        img_size=img_size,
        in_channels=build.get("channels", build.get("in_chans", 3)),
        drop_path_rate=build.get("drop_path_rate", 0.0),
    )


def _read(
    family: KeyMap, backbone: Callable[..., nn.Module], build: dict, options: dict, dense: Callable
) -> Reading:
    """The models of a case; ``dense`` makes that of the task ``'dense'``."""
    depth = build["depth"]
    pool = build.get("final_pool_type", "mean")

    def build_model(task: str) -> nn.Module:
        if task == "dense":
            return dense()
        out_type = choice("final_pool_type", pool, POOLS)
        if options["arch"]["cls_token"] != "none":
            out_type = "cls_token"
        classes = build.get("num_classes", 1000)
        model = backbone(**options, out_type=out_type)
        return PlainClassifier(model, classes, out_type == "raw" and pool == "max")

    layers = range(depth)
    return Reading(
        family,
        build_model,
        probes={f"layer{i}.mixer_out": (f"layers.{i}.mixer", whole_output) for i in layers},
        inputs={"embed": "layers.0", **{f"layer{i}.residual": f"layers.{i}.norm" for i in layers}},
    )


def _key_map(family: str, **names) -> KeyMap:
    """The family's key map, with names of dense models; see :func:`plain_dense`."""
    key_map = KEY_MAPS[family]
    return replace(key_map, tasks={**key_map.tasks, "dense": plain_dense(**names)})


def read(build: dict) -> Reading:
    """How to build the model of a case of Vim: a classifier, detector's or segmentor's backbone."""
    options = read_plain(build)
    if build.get("bimamba_type") == "v1":
        raise UnsupportedCase("bimamba_type 'v1': both scans of 'v2' have their own projections")
    options["arch"].update(
        bidirectional=choice("bimamba_type", build.get("bimamba_type", "none"), SCANS),
        divide_out=build["if_divide_out"],
    )

    dims, depth = build["embed_dim"], build["depth"]
    process = build.get("last_layer_process", "none")
    last = choice("last_layer_process", process, LAST_FEATURES)
    indices = build.get("out_indices") or (5, 11, 17, 23)
    is_residual = build.get("use_residual_as_feature", False)
    names = {}
    # only the last layer's sum passes the last norm, which is nothing to mixers' outputs
    has_norm = is_residual and process == "add & norm" and depth - 1 in indices
    if has_norm:
        final_norm = names["final_norm"] = f"norm{list(indices).index(depth - 1)}"
    patch_size = options["arch"]["patch_size"]
    if patch_size in PYRAMIDS:
        scales, names["pyramid"] = PYRAMIDS[patch_size]

    def dense() -> nn.Module:
        # detectors and segmentors delete the class token and its position
        common = dict(options, cls_token="none", out_type="featmap")
        if "fpn_scales" in build:
            if process == "add & norm":
                raise UnsupportedCase(f"last_layer_process {process!r}: detectors delete norm_f")
            neck = SimpleFeaturePyramid(dims, build["fpn_out_channels"])
            model = Vim(**common, out_norm=False, feature=last)
            return PlainDense(model, ["stage3"], neck, [f"p{i}" for i in range(2, 7)])
        features = ["mixer"] * len(indices)
        if is_residual:
            features = [last if i == depth - 1 else "residual" for i in indices]
        model = Vim(**common, out_indices=indices, feature=features, out_norm=has_norm)
        stages = [f"stage{k}" for k in range(len(indices))]
        if has_norm:
            for k in range(len(indices)):
                if f"norm{k}" != final_norm:
                    model.add_module(f"norm{k}", nn.Identity())
        if not build.get("if_fpn", False):
            return PlainDense(model, stages)
        if patch_size not in PYRAMIDS or len(indices) != 4:
            raise UnsupportedCase("if_fpn: pyramids are those of four maps, of patches of 16 or 8")
        from mmseg.models.necks import Feature2Pyramid

        neck = Feature2Pyramid(dims, scales, norm_cfg=dict(type="BN"))
        return PlainDense(model, stages, neck, [f"fpn{k}" for k in range(4)])

    return _read(_key_map("vim", **names), Vim, build, options, dense)


def read_local_vim(build: dict) -> Reading:
    """How to build the model of a case of LocalVim: a classifier and its dense features."""
    options = read_plain(build)
    directions = build["directions"]
    options.update(
        directions="search" if directions is None else directions,
        output_order=choice("v_reverse", build.get("v_reverse", "inverse"), OUTPUT_ORDERS),
    )
    has_maps = options["arch"]["cls_token"] == "none"

    def dense() -> nn.Module:
        indices = build.get("out_indices") or (4, 9, 14, 19)
        common = dict(options, out_indices=indices, feature="mixer")
        if has_maps:
            model = LocalVim(**common, out_type="featmap", out_norm="ln")
            return PlainDense(model, [f"stage{k}" for k in range(len(indices))])
        model = LocalVim(**common, out_type="raw", out_norm=False)
        return PlainDense(model, [f"tokens{k}" for k in range(len(indices))])

    # sequences with a class token are stored as they are before the norms
    family = _key_map("local_vim", out_norms=has_maps)
    return _read(family, LocalVim, build, options, dense)
