"""The reference's descriptions of the plain backbones, Vim and LocalVim."""

from __future__ import annotations

from collections.abc import Callable

from mmengine.utils import to_2tuple
from torch import Tensor, nn

from mmvssm.models import LocalVim, SimpleFeaturePyramid, Vim

from ..compare import UnsupportedCase
from .common import Reading, choice

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
LAST_FEATURES = {"none": "mixer", "add": "residual"}
WAYS_BACK = {"inverse": "inverse", "upstream": "upstream"}
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


class SkippedNorm(nn.LayerNorm):
    """A norm that a case has weights of, and whose input it stores."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        return x


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
        in_channels=build.get("channels", 3),
        drop_path_rate=build.get("drop_path_rate", 0.0),
    )


def _read(
    family: str, backbone: Callable[..., nn.Module], build: dict, options: dict, dense: Callable
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

    def mixer_output(output: Tensor) -> Tensor:
        return output

    layers = range(depth)
    return Reading(
        family,
        build_model,
        probes={f"layer{i}.mixer_out": (f"layers.{i}.mixer", mixer_output) for i in layers},
        inputs={"embed": "layers.0", **{f"layer{i}.residual": f"layers.{i}.norm" for i in layers}},
    )


def read(build: dict) -> Reading:
    """How to build the model of a case of Vim: a classifier, detector's or segmentor's backbone."""
    options = read_plain(build)
    if build.get("bimamba_type") == "v1":
        raise UnsupportedCase("bimamba_type 'v1': both scans of 'v2' have their own projections")
    options["arch"].update(
        bidirectional=choice("bimamba_type", build.get("bimamba_type", "none"), SCANS),
        divide_out=build["if_divide_out"],
    )

    def dense() -> nn.Module:
        last = build.get("last_layer_process", "none")
        if last == "add & norm":
            raise UnsupportedCase("last_layer_process 'add & norm': dense models start norms anew")
        last = choice("last_layer_process", last, LAST_FEATURES)
        dims, depth = build["embed_dim"], build["depth"]
        # detectors and segmentors delete the class token and its position
        common = dict(options, cls_token="none", out_type="featmap", out_norm=False)
        if "fpn_scales" in build:
            neck = SimpleFeaturePyramid(dims, build["fpn_out_channels"])
            model = Vim(**common, feature=last)
            return PlainDense(model, ["stage3"], neck, [f"p{i}" for i in range(2, 7)])
        indices = build["out_indices"]
        features = ["mixer"] * len(indices)
        if build.get("use_residual_as_feature", False):
            features = [last if i == depth - 1 else "residual" for i in indices]
        model = Vim(**common, out_indices=indices, feature=features)
        names = [f"stage{k}" for k in range(len(indices))]
        if not build.get("if_fpn", False):
            return PlainDense(model, names)
        if options["arch"]["patch_size"] != 16:
            raise UnsupportedCase("if_fpn: the pyramid is that of patches of 16 pixels")
        from mmseg.models.necks import Feature2Pyramid

        neck = Feature2Pyramid(dims, norm_cfg=dict(type="BN"))
        return PlainDense(model, names, neck, [f"fpn{k}" for k in range(len(indices))])

    return _read("vim", Vim, build, options, dense)


def read_local_vim(build: dict) -> Reading:
    """How to build the model of a case of LocalVim: a classifier and its dense features."""
    options = read_plain(build)
    directions = build["directions"]
    options.update(
        directions="search" if directions is None else directions,
        way_back=choice("v_reverse", build.get("v_reverse", "inverse"), WAYS_BACK),
    )

    def dense() -> nn.Module:
        indices = build["out_indices"]
        common = dict(options, out_indices=indices, feature="mixer")
        if options["arch"]["cls_token"] == "none":
            model = LocalVim(**common, out_type="featmap", out_norm="ln")
            return PlainDense(model, [f"stage{k}" for k in range(len(indices))])
        model = LocalVim(**common, out_type="raw", out_norm=False)
        for k in range(len(indices)):
            model.add_module(f"norm{k}", SkippedNorm(model.embed_dims))
        return PlainDense(model, [f"tokens{k}" for k in range(len(indices))])

    return _read("local_vim", LocalVim, build, options, dense)
