"""The reference's descriptions of the plain backbones, Vim and LocalVim."""

from collections.abc import Callable

from mmengine.utils import to_2tuple
from torch import nn

from mmvssm.models import LocalVim, SimpleFeaturePyramid, Vim

from ..cases import Case, register_reader
from ..compare import UnsupportedCase
from ..models import Classifier, Dense, ModelSpec
from .options import OUTPUT_ORDERS, choice, require, take

ONE_FORM = dict(
    norm_epsilon=[1e-5],
    init_layer_scale=[None],
    if_bidirectional=[False],
    if_random_cls_token_position=[False],
    if_random_token_rank=[False],
    flip_img_sequences_ratio=[-1.0, 0, None],
    pt_hw_seq_len=[14],
    fpn_scales=[[4.0, 2.0, 1.0, 0.5]],
)
BIDIRECTIONAL = {"v2": True, "none": False}
LAST_FEATURES = {"none": "mixer", "add": "residual", "add & norm": "residual"}
POOLS = {"mean": "avg_featmap", "none": "last_token", "all": "raw", "max": "raw"}
# Segmentors' pyramids by patch size: scales of the four maps, and names that differ from 16's.
PYRAMIDS = {16: ((4, 2, 1, 0.5), {}), 8: ((2, 1, 0.5, 0.25), {"fpn1.": "neck.upsample_2x."})}


def arguments(build: dict) -> dict:
    """Return the arguments that both backbones share."""
    require(build, **ONE_FORM)
    rope = build.get("if_rope", False)
    if build.get("if_rope_residual", rope) != rope:
        raise UnsupportedCase(
            "if_rope_residual differs from if_rope: built is rope on both or none"
        )
    img_size = to_2tuple(build.get("img_size", 224))
    if rope and img_size[0] != img_size[1]:
        raise UnsupportedCase(f"img_size {img_size}: the reference's rope has square tables")
    cls_token = "none"
    if build.get("if_cls_token", False):
        cls_token = "middle" if build.get("use_middle_cls_token", False) else "head"
        if build.get("use_double_cls_token", False):
            cls_token = "double"
    arch = dict(
        take(build, patch_size=16, stride=build.get("patch_size", 16)),
        embed_dims=build["embed_dim"],
        num_layers=build["depth"],
        cls_token=cls_token,
        pos_embed=build.get("if_abs_pos_embed", False),
        rope=rope,
        norm="rms" if build.get("rms_norm", False) else "ln",
        mixer=take(build, d_state=16, dt_rank=None, d_conv=4),
    )
    arch["mixer"]["ssm_ratio"] = build.get("expand", 2)
    in_channels = build.get("channels", build.get("in_chans", 3))
    options = take(build, drop_path_rate=0.0)
    return dict(options, arch=arch, img_size=img_size, in_channels=in_channels)


def _spec(
    backbone: type, family: str, build: dict, options: dict, dense: Callable, renames: dict
) -> ModelSpec:
    """Return the models of a case; ``dense`` makes that of the task ``'dense'``."""

    def build_model(task: str) -> nn.Module:
        if task == "dense":
            return dense()
        out_type = choice(build, "final_pool_type", POOLS, "mean")
        max_pool = build.get("final_pool_type") == "max"
        if options["arch"]["cls_token"] != "none":
            out_type, max_pool = "cls_token", False
        model = backbone(**options, out_type=out_type)
        return Classifier(model, build.get("num_classes", 1000), max_pool)

    layers = range(build["depth"])
    return ModelSpec(
        family,
        build_model,
        renames,
        outputs={f"layer{i}.mixer_out": f"layers.{i}.mixer" for i in layers},
        inputs={"embed": "layers.0", **{f"layer{i}.residual": f"layers.{i}.norm" for i in layers}},
    )


@register_reader("vim")
def read(case: Case) -> ModelSpec:
    """Read a case of Vim: a classifier, a detector's or a segmentor's backbone."""
    build = case.meta["build"]
    options = arguments(build)
    if build.get("bimamba_type") == "v1":
        raise UnsupportedCase("bimamba_type 'v1': both scans of 'v2' have their own projections")
    options["arch"].update(
        bidirectional=choice(build, "bimamba_type", BIDIRECTIONAL, "none"),
        divide_out=build["if_divide_out"],
    )
    last_feature = choice(build, "last_layer_process", LAST_FEATURES, "none")
    indices, last = list(build.get("out_indices") or (5, 11, 17, 23)), build["depth"] - 1
    features, normed = ["mixer"] * len(indices), None
    if build.get("use_residual_as_feature", False):
        features = [last_feature if i == last else "residual" for i in indices]
        # only the sum after the last layer goes through the last norm
        if build.get("last_layer_process") == "add & norm" and last in indices:
            normed = indices.index(last)
    scales, renames = PYRAMIDS.get(options["arch"]["patch_size"], (None, {}))
    if normed is not None:
        renames = {**renames, "norm_f.": f"backbone.norm{normed}."}

    def dense() -> nn.Module:
        # detectors and segmentors delete the class token and its position
        common = dict(options, cls_token="none", out_type="featmap")
        if "fpn_scales" in build:
            if build.get("last_layer_process") == "add & norm":
                raise UnsupportedCase("last_layer_process 'add & norm': detectors delete norm_f")
            neck = SimpleFeaturePyramid(build["embed_dim"], build["fpn_out_channels"])
            model = Vim(**common, out_norm=False, feature=last_feature)
            return Dense(model, ["stage3"], neck, [f"p{i}" for i in range(2, 7)])
        common.update(out_norm=normed is not None)
        model = Vim(**common, out_indices=indices, feature=features)
        for k in range(len(indices)):
            if normed not in (None, k):
                model.add_module(f"norm{k}", nn.Identity())
        stages = [f"stage{k}" for k in range(len(indices))]
        if not build.get("if_fpn", False):
            return Dense(model, stages)
        if scales is None or len(indices) != 4:
            raise UnsupportedCase("if_fpn: pyramids are those of four maps, of patches of 16 or 8")
        from mmseg.models.necks import Feature2Pyramid

        neck = Feature2Pyramid(build["embed_dim"], scales, norm_cfg=dict(type="BN"))
        return Dense(model, stages, neck, [f"fpn{k}" for k in range(4)])

    return _spec(Vim, "vim", build, options, dense, renames)


def read_local_vim(build: dict) -> ModelSpec:
    """Read a case of LocalVim: a classifier and its dense features."""
    options = arguments(build)
    options.update(
        directions="search" if build["directions"] is None else build["directions"],
        output_order=choice(build, "v_reverse", OUTPUT_ORDERS, "inverse"),
    )
    has_maps = options["arch"]["cls_token"] == "none"

    def dense() -> nn.Module:
        indices = build.get("out_indices") or (4, 9, 14, 19)
        common = dict(options, out_indices=indices, feature="mixer")
        if has_maps:
            model = LocalVim(**common, out_type="featmap", out_norm="ln")
            return Dense(model, [f"stage{k}" for k in range(len(indices))])
        model = LocalVim(**common, out_type="raw", out_norm=False)
        return Dense(model, [f"tokens{k}" for k in range(len(indices))])

    # sequences with a class token are stored as they are before the norms
    renames = {} if has_maps else {"outnorm_": None}
    return _spec(LocalVim, "local_vim", build, options, dense, renames)
