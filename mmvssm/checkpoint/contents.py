"""What a file holds besides a backbone, and what the models of each task ask of one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmvssm.models.backbones.plain import PlainBackbone

from .arch import Found, compare
from .messages import join_names
from .names import PREFIX

CONTENTS = ("backbone", "classifier", "detector", "segmentor")
#: What names of the heads begin with that a content has.
HEADS = {
    "detector": ("rpn_head.", "roi_head.", "bbox_head.", "mask_head."),
    "segmentor": ("decode_head.", "auxiliary_head."),
    "classifier": ("head.",),
}
#: The same of Detectron2, for which mmdetection has no counterpart.
FOREIGN_HEADS = ("proposal_generator.", "roi_heads.")
CLASSIFIER_HEAD = ("head.fc.weight", "head.fc.bias")
_LIBRARIES = {"mmpretrain": "classifier", "mmdet": "detector", "mmseg": "segmentor"}
_HINT = "if the model has another head, name its config file as --arch"


def content_of(keys: Iterable[str]) -> str:
    """What a file holds, by the names of its weights: one of :data:`CONTENTS`."""
    keys = list(keys)
    if not any(key.startswith(PREFIX) for key in keys):
        is_classifier = any(re.match(r"(classifier\.)?head\.", key) for key in keys)
        return "classifier" if is_classifier else "backbone"
    for content, heads in HEADS.items():
        if any(key.startswith(heads) for key in keys):
            return content
    return "detector" if any(key.startswith(FOREIGN_HEADS) for key in keys) else "backbone"


def content_of_config(config: Config) -> str:
    """What a config's model is: one of :data:`CONTENTS`.

    Raises:
        ValueError: If its ``default_scope`` is none of the three libraries.
    """
    scope = config.get("default_scope")
    if scope not in _LIBRARIES:
        raise ValueError(
            f"the config's default_scope must be one of {', '.join(_LIBRARIES)}, got {scope!r}"
        )
    return _LIBRARIES[scope]


def check_contents(source: str, content: str, keys: Iterable[str]) -> None:
    """Check that a file of ``source`` can become a ``content``.

    Raises:
        ValueError: If it cannot.
    """
    if content not in CONTENTS:
        raise ValueError(f"to must be one of {', '.join(CONTENTS)}, got {content!r}")
    if content == "detector" and any(key.startswith(FOREIGN_HEADS) for key in keys):
        raise ValueError(
            "the file holds a detector of Detectron2, whose heads have no counterpart here: take"
            " its backbone with --to backbone"
        )
    is_dense = {"detector", "segmentor"}
    if content != source and (content == "classifier" or {source, content} == is_dense):
        raise ValueError(f"the file holds a {source}, which cannot become a {content}")


def check_heads(mapped: Mapping[str, Tensor], content: str, backbone: nn.Module) -> None:
    """Check what stands beside the backbone, as far as that is possible without a config.

    A classifier must have a linear head that fits; of others the names alone are known.

    Raises:
        ValueError: If something is missing, left over or of another shape.
    """
    outside = {key: value for key, value in mapped.items() if not key.startswith(PREFIX)}
    if content == "classifier":
        dims = backbone.embed_dims
        dims = dims if isinstance(dims, int) else dims[-1]
        weight = outside.get("head.fc.weight")
        classes = len(weight) if weight is not None and weight.dim() else 0
        wanted = dict(zip(CLASSIFIER_HEAD, ((classes, dims), (classes,))))
        if differences := compare(outside, wanted):
            raise ValueError(
                f"the head is no linear one behind {dims} channels; {_HINT}; differences:"
                f" {differences}"
            )
    else:
        known = ("neck.", *HEADS.get(content, ()))
        if strays := [key for key in outside if not key.startswith(known)]:
            raise ValueError(f"{len(strays)} weights are left over: {join_names(strays)}; {_HINT}")


def check_against_config(mapped: Mapping[str, Tensor], config: Config) -> None:
    """Check all weights against the model of a config.

    Raises:
        ValueError: If they differ in keys or shapes; the message lists where.
    """
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model)
    wanted = model.state_dict()
    # the backbone has been compared already, its tables perhaps for another image size
    differences = compare(
        {key: value for key, value in mapped.items() if not key.startswith(PREFIX)},
        {key: value for key, value in wanted.items() if not key.startswith(PREFIX)},
    )
    if differences:
        raise ValueError(f"the weights beside the backbone do not fit the config: {differences}")


def as_in_configs(
    found: Found, mapped: Mapping[str, Tensor], content: str
) -> tuple[Found, dict[str, Tensor], dict[str, Tensor]]:
    """The backbone that the configs of a task build, its weights, and those not in ``mapped``.

    Its output norms are those of ``mapped`` if these are complete, else new ones.
    """
    with torch.device("meta"):
        model = found.build()
    options = {k: v for k, v in found.options.items() if k not in ("out_indices", "out_norm")}
    found = replace(found, options=options | _dense_options(found.family, model, content))
    with torch.device("meta"):
        model = found.build()
    norms = {
        name: module
        for name, module in model.named_children()
        if re.fullmatch(r"norm\d+", name) and module.state_dict()
    }
    fresh: dict[str, Tensor] = {}
    if any(f"{PREFIX}{name}.weight" not in mapped for name in norms):
        for name, module in norms.items():
            module.to_empty(device="cpu")
            nn.init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
            fresh |= {
                k: v.detach() for k, v in module.state_dict(prefix=f"{PREFIX}{name}.").items()
            }
    keys = model.state_dict(prefix=PREFIX)
    return found, {key: fresh[key] if key in fresh else mapped[key] for key in keys}, fresh


def _dense_options(family: str, model: nn.Module, content: str) -> dict[str, Any]:
    """Arguments of a backbone in our configs of detectors and segmentors, beyond the defaults."""
    if not isinstance(model, PlainBackbone):
        return {}
    options: dict[str, Any] = dict(out_type="featmap")
    if content == "segmentor":
        options["out_indices"] = tuple(model.num_layers * k // 4 - 1 for k in range(1, 5))
    if family == "local_vim":
        return dict(options, out_norm="ln", feature="mixer")
    options["out_norm"] = False
    return dict(options, drop_cls_token=True) if model.cls_place != "none" else options
