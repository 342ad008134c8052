"""Heads of models: the content of a file besides its backbone, and checks of it."""

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
#: Prefixes of the names of heads by content.
HEADS = {
    "detector": ("rpn_head.", "roi_head.", "bbox_head.", "mask_head."),
    "segmentor": ("decode_head.", "auxiliary_head."),
    "classifier": ("head.",),
}
#: Prefixes of Detectron2's heads, which some families can rename.
FOREIGN_HEADS = ("proposal_generator.", "roi_heads.")
_LIBRARIES = {"mmpretrain": "classifier", "mmdet": "detector", "mmseg": "segmentor"}
_HINT = "for another head, name the model's config file (--arch), or drop it (--to backbone)"


def content_of(keys: Iterable[str], config: Config | None = None) -> str:
    """Return the content of a file by its keys and, for heads of other names, a config."""
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
    """Raise ValueError unless a file with ``source`` can be converted to ``content``."""
    if content not in CONTENTS:
        raise ValueError(f"to must be one of {', '.join(CONTENTS)}, got {content!r}")
    is_dense = {"detector", "segmentor"}
    if content != source and (content == "classifier" or {source, content} == is_dense):
        raise ValueError(f"the file holds a {source}, which cannot become a {content}")


def check_heads(
    ours: Mapping[str, Tensor], content: str, found: Found, config: Config | None
) -> bool:
    """Check everything outside of the backbone; return whether it was compared with a config.

    Without a config, classifiers must have a linear head that fits; for other heads only the names
    are checked.
    """
    outside = {key: value for key, value in ours.items() if not key.startswith(PREFIX)}
    if config is not None and _content_of_config(config) == content:
        with DefaultScope.overwrite_default_scope(config.default_scope):
            wanted = MODELS.build(config.model).state_dict()
        # the backbone has already been compared, perhaps with tables of another image size
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
                f"the head must be a linear layer of {dims} channels; {_HINT}; {differences}"
            )
    else:
        known = ("neck.", *HEADS.get(content, ()))
        if left_over := [key for key in outside if not key.startswith(known)]:
            raise ValueError(f"{len(left_over)} left over: {join_names(left_over)}; {_HINT}")
    return False
