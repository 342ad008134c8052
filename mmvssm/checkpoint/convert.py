"""From a released or trained checkpoint to one of ours, checked, and back again."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

from mmvssm.files import Progress
from mmvssm.models.layers.tokens import cls_positions, remove_tokens
from mmvssm.version import __version__

from .arch import Found, find_arch, find_family, read_config, shapes_of
from .contents import (
    as_in_configs,
    check_against_config,
    check_contents,
    check_heads,
    content_of,
    content_of_config,
)
from .messages import join_names, printable
from .names import (
    KEY_MAPS,
    NAMES,
    PREFIX,
    default_names,
    map_state_dict,
    release_names,
    unmap_state_dict,
    unused_keys,
)
from .weights import Weights, select_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: What a file's own ``meta`` may say that stays true of the product.
KEPT_META = ("dataset_meta", "epoch", "iter")
POS_EMBED = f"{PREFIX}pos_embed"
_OUT_NORM = re.compile(rf"^{re.escape(PREFIX)}norm\d+\.")
# Numbers that are looked at together, so that a large tensor needs no large mask.
_MANY = 2**24


@dataclass(frozen=True)
class Converted:
    """Weights of a checkpoint in our names, complete and finite.

    Attributes:
        weights: What was taken of the file, under its own names.
        found: The backbone that the weights are those of.
        source: What the file holds: one of :data:`~.contents.CONTENTS`.
        content: What ``state_dict`` holds: one of :data:`~.contents.CONTENTS`.
        names: Which naming of the project the file has, or the one that it was converted from, see
            :func:`release_names`; None for weights trained here.
        state_dict: The weights, with ``backbone.`` in front of the backbone's.
        fresh: Names in ``state_dict`` that the file does not have: norms at their start.
        unused: Names in the file of what is left out, if it holds what ``state_dict`` does.
        is_whole: Whether heads have been held against a config's model, too.
        meta: What a file of them says of itself, in plain types.
    """

    weights: Weights
    found: Found
    source: str
    content: str
    names: str | None
    state_dict: dict[str, Tensor]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    is_whole: bool
    meta: dict[str, Any]


def convert(
    checkpoint: Mapping[str, Any],
    *,
    arch: str | None = None,
    weights: str = "auto",
    to: str | None = None,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Bring the weights of a checkpoint into our names, and check every one of them.

    Args:
        checkpoint: What :func:`read_checkpoint` gives: any release of the six families, or ours.
        arch: Arch to hold the weights against; None takes the one that one of our files names, or
            finds it. See :func:`find_arch`. With a config, heads are held against its model, too.
        weights: ``'ema'``, ``'online'`` or ``'auto'``, see :func:`select_weights`.
        to: What to make, one of :data:`~.contents.CONTENTS`; None for what the file holds.
            ``'backbone'`` is the backbone alone, without a classifier's norm. A ``'detector'`` or
            ``'segmentor'`` of a file without one is the backbone that the configs of this task
            build, output norms at their start included.
        dtype: A key of :data:`DTYPES` for all floating-point weights; None leaves each its own.
        progress: Is told how many bytes of how many have been checked.

    Raises:
        ValueError: If the file has no such weights, family, arch or content, or if weights are
            missing, left over, of another shape or dtype, or not finite; the message lists them.
    """
    chosen = select_weights(checkpoint, weights)
    family = find_family(chosen.tensors)
    config = read_config(arch) if arch is not None and arch.endswith(".py") else None
    source = content_of(chosen.tensors)
    if source == "backbone" and config is not None:
        source = _content_with_config(chosen.tensors, config)
    content = source if to is None else to
    check_contents(source, content, chosen.tensors)
    task = "classification" if content == "classifier" else "dense"
    mapped = map_state_dict(chosen.tensors, family, task)
    is_ours = _of_backbone(mapped).keys() <= {key.removeprefix(PREFIX) for key in chosen.tensors}
    is_whole = config is not None and content_of_config(config) == content == source
    everything = mapped
    if content != source or content == "backbone":
        mapped = _backbone_alone(mapped, is_ours and source == "classifier")
    found = _find_arch(checkpoint, shapes_of(_of_backbone(mapped)), family, arch)
    with torch.device("meta"):
        model = found.build()
    if is_whole:
        check_against_config(mapped, config)
    elif content == source and to != "backbone":
        check_heads(everything, content, model)
    _check_dtypes(mapped, model, dtype)
    fresh: dict[str, Tensor] = {}
    if content != source and content != "backbone":
        found, mapped, fresh = as_in_configs(found, mapped, content)
    mapped = _finite(mapped, dtype, progress)
    names = _own_meta(checkpoint).get("names")
    if names not in NAMES:
        names = None if is_ours else release_names(chosen.tensors, family)
    own = dict(
        version=__version__,
        type=f"mmvssm.{found.type}",
        arch=found.arch,
        options=found.options,
        content=content,
        weights=chosen.kind,
        names=names,
    )
    meta = {**_kept_meta(checkpoint), "mmvssm": own}
    unused = unused_keys(chosen.tensors, family, task, mapped) if content == source else ()
    return Converted(
        chosen, found, source, content, names, mapped, tuple(fresh), unused, is_whole, meta
    )


def _content_with_config(keys: Iterable[str], config: Config) -> str:
    """What a file holds whose heads, if it has some, have names of their own."""
    has_more = any(not key.startswith((PREFIX, "neck.")) for key in keys)
    is_model = has_more and any(key.startswith(PREFIX) for key in keys)
    return content_of_config(config) if is_model else "backbone"


def _find_arch(
    checkpoint: Mapping[str, Any], shapes: Mapping[str, tuple], family: str, arch: str | None
) -> Found:
    """The arch that is asked for, else the one that a file of ours names, else the one found."""
    named = _own_meta(checkpoint).get("arch")
    if arch is None and isinstance(named, str) and not named.endswith(".py"):
        try:
            return find_arch(shapes, family, named)
        except ValueError:  # the weights are another's now, and say themselves what they are
            warnings.warn(
                f"the file names {printable(named)} as its arch, which is none of ours or does not fit"
                " its weights: the arch is found from their keys and shapes",
                stacklevel=3,
            )
    return find_arch(shapes, family, arch)


def smoke_test(converted: Converted) -> dict[str, Tensor]:
    """Outputs of the backbone, and of a linear classifier, for one image of noise.

    Returns:
        ``output{k}`` of the backbone and, for classifiers, ``logits (1, classes)``.

    Raises:
        ValueError: If an output is not finite.
    """
    weights = converted.state_dict
    precise = {
        key: value.float() if value.is_floating_point() else value
        for key, value in _of_backbone(weights).items()
    }
    with torch.device("meta"):
        backbone = converted.found.build().eval()
    backbone.load_state_dict(precise, assign=True)
    size = converted.found.options.get("img_size", 224)
    size = (size, size) if isinstance(size, int) else tuple(size)
    noise = torch.randn(1, backbone.in_channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = {f"output{k}": out for k, out in enumerate(backbone(noise))}
        if "head.fc.weight" in weights:
            last = list(outputs.values())[-1]
            pooled = last if last.dim() == 2 else last.mean((2, 3))
            outputs["logits"] = F.linear(
                pooled, weights["head.fc.weight"].float(), weights["head.fc.bias"].float()
            )
    wrong = [name for name, value in outputs.items() if not is_finite(value)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} of a forward pass is NaN or infinite")
    return outputs


def restore(converted: Converted) -> dict[str, dict[str, Tensor]]:
    """What a file of the original project holds: the weights by its names, where it looks for them.

    Raises:
        ValueError: If the weights have no counterpart there; see :func:`unmap_state_dict`.
    """
    found, key_map = converted.found, KEY_MAPS[converted.found.family]
    names = converted.names
    if names is None:
        names = default_names(found.family, found.arch if isinstance(found.arch, str) else None)
    # their dense models start from files of classifiers, of which they take the layers
    is_start = converted.content == "backbone" and not any(
        map(_OUT_NORM.match, converted.state_dict)
    )
    if is_start or converted.content == "classifier":
        task, entries = "classification", key_map.container
    else:
        task, entries = "dense", key_map.dense_container
    weights = dict(converted.state_dict)
    if found.options.get("drop_cls_token"):
        weights[POS_EMBED] = _without_class_rows(weights[POS_EMBED], found)
    return dict.fromkeys(entries, unmap_state_dict(weights, found.family, task, names=names))


def _without_class_rows(table: Tensor, found: Found) -> Tensor:
    """A position embedding as the original projects' detectors and segmentors have it."""
    with torch.device("meta"):
        model = found.build()
    patches = math.prod(model.grid)
    if table.shape[1] == patches:
        return table
    return remove_tokens(table, cls_positions(model.cls_place, patches))


def _of_backbone(mapped: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix(PREFIX): value for key, value in mapped.items() if key.startswith(PREFIX)
    }


def _backbone_alone(mapped: Mapping[str, Tensor], is_classifier: bool) -> dict[str, Tensor]:
    """Entries of the backbone, without the norm that one of our classifiers has there."""
    return {
        key: value
        for key, value in mapped.items()
        if key.startswith(PREFIX) and not (is_classifier and _OUT_NORM.match(key))
    }


def _check_dtypes(mapped: Mapping[str, Tensor], model: nn.Module, dtype: str | None) -> None:
    expected = model.state_dict(prefix=PREFIX)
    floating = {*DTYPES.values()} if dtype is None else {*DTYPES.values(), torch.float64}
    wrong = []
    for key, value in mapped.items():
        fitting = floating
        if key not in expected:  # heads
            fitting = {*floating, torch.int64}
        elif not expected[key].is_floating_point():
            fitting = {expected[key].dtype}
        if value.dtype not in fitting:
            wrong.append(f"{key} is {value.dtype}".replace("torch.", ""))
    if wrong:
        raise ValueError(
            f"weights must be {', '.join(DTYPES)}, or fp64 with a --dtype to convert them to, and"
            f" counters int64: {join_names(wrong)}"
        )


def _finite(
    mapped: Mapping[str, Tensor], dtype: str | None, progress: Progress | None
) -> dict[str, Tensor]:
    """The weights in another dtype, all finite before and after."""
    total, done = sum(value.nbytes for value in mapped.values()), 0
    wrong, beyond, found = [], [], {}
    for key, value in mapped.items():
        found[key] = value
        if not is_finite(value):
            wrong.append(key)
        elif dtype is not None and value.is_floating_point():
            found[key] = value.to(DTYPES[dtype])
            if not is_finite(found[key]):
                beyond.append(key)
        done += value.nbytes
        if progress is not None:
            progress(done, total)
    if wrong:
        raise ValueError(f"weights are NaN or infinite: {join_names(wrong)}; the file is of no use")
    if beyond:
        raise ValueError(
            f"weights are beyond the range of {dtype}: {join_names(beyond)}; take bf16"
        )
    return found


def is_finite(value: Tensor) -> bool:
    """Whether there is no NaN and no infinity, looking at a part after the other."""
    if not value.is_floating_point():
        return True
    parts = value.reshape(-1).split(_MANY)
    return all(bool(part.isfinite().all()) for part in parts)


def _own_meta(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = checkpoint.get("meta")
    own = meta.get("mmvssm") if isinstance(meta, Mapping) else None
    return own if isinstance(own, Mapping) else {}


def _kept_meta(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    meta = checkpoint.get("meta")
    if not isinstance(meta, Mapping):
        return {}
    return {name: meta[name] for name in KEPT_META if name in meta and _is_plain(meta[name])}


def _is_plain(value: Any, depth: int = 6) -> bool:
    """Whether a value consists of numbers, words and plain containers of them."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if type(value) in (list, tuple):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or type(value) in (str, int, float, bool)
