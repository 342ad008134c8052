"""Heads of models: what a file holds besides a backbone, and whether it is as it should be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

from mmvssm.families.key_map import PREFIX, has_backbone
from mmvssm.messages import join_names

from .arch import Found, compare

CONTENTS = ("backbone", "classifier", "detector", "segmentor")
#: Beginnings of the names of the heads that a content has.
HEADS = {
    "detector": ("rpn_head.", "roi_head.", "bbox_head.", "mask_head."),
    "segmentor": ("decode_head.", "auxiliary_head."),
    "classifier": ("head.",),
}
#: The same of Detectron2, whose names declarations of families may know.
FOREIGN_HEADS = ("proposal_generator.", "roi_heads.")
_LIBRARIES = {"mmpretrain": "classifier", "mmdet": "detector", "mmseg": "segmentor"}
_HINT = "if the model has another head, name its config file as --arch, or leave it: --to backbone"


def content_of(keys: Iterable[str], config: Config | None = None) -> str:
    """Return what a file holds, by its keys and, for heads of other names, the model's config."""
    keys = list(keys)
    if not has_backbone(keys):
        is_classifier = any(re.match(r"(classifier\.)?head\.", key) for key in keys)
        return "classifier" if is_classifier else "backbone"
    for content, heads in [*HEADS.items(), ("detector", FOREIGN_HEADS)]:
        if any(key.startswith(heads) for key in keys):
            return content
    if config is not None and any(not key.startswith((PREFIX, "neck.")) for key in keys):
        return _content_of_config(config)
    return "backbone"


def _content_of_config(config: Config) -> str:
    scope = config.get("default_scope")
    if scope not in _LIBRARIES:
        raise ValueError(f"default_scope must be one of {', '.join(_LIBRARIES)}, got {scope!r}")
    return _LIBRARIES[scope]


def check_content(source: str, content: str) -> None:
    """Raise ValueError unless a file of ``source`` can become a ``content``."""
    if content not in CONTENTS:
        raise ValueError(f"to must be one of {', '.join(CONTENTS)}, got {content!r}")
    is_dense = {"detector", "segmentor"}
    if content != source and (content == "classifier" or {source, content} == is_dense):
        raise ValueError(f"the file holds a {source}, which cannot become a {content}")


def check_heads(
    ours: Mapping[str, Tensor], content: str, found: Found, config: Config | None
) -> bool:
    """Check all outside of the backbone, and return whether it has been held against a config.

    Without one, classifiers must have a fitting linear head; of others the names alone are known.
    """
    outside = {key: value for key, value in ours.items() if not key.startswith(PREFIX)}
    if config is not None and _content_of_config(config) == content:
        with DefaultScope.overwrite_default_scope(config.default_scope):
            wanted = MODELS.build(config.model).state_dict()
        # the backbone has been compared already, its tables perhaps for another image size
        wanted = {key: value for key, value in wanted.items() if not key.startswith(PREFIX)}
        if (differences := compare(outside, wanted)).number:
            raise ValueError(f"the weights of the heads do not fit the config: {differences}")
        return True
    if content == "classifier":
        dims = vars(found.build())["embed_dims"]
        dims = dims if isinstance(dims, int) else dims[-1]
        weight = outside.get("head.fc.weight")
        classes = len(weight) if weight is not None and weight.dim() else 0
        wanted = {"head.fc.weight": (classes, dims), "head.fc.bias": (classes,)}
        if (differences := compare(outside, wanted)).number:
            raise ValueError(
                f"the head is no linear one of {dims} channels; {_HINT}; {differences}"
            )
    else:
        known = ("neck.", *HEADS.get(content, ()))
        if left_over := [key for key in outside if not key.startswith(known)]:
            raise ValueError(f"{len(left_over)} left over: {join_names(left_over)}; {_HINT}")
    return False
