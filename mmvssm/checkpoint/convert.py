"""Conversion of released or trained checkpoints to checked ones for our models, and back."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from mmvssm.families import Family, find_declared
from mmvssm.families.key_map import NAMES, POS_GRID, PREFIX, KeyMap, release_names
from mmvssm.families.recognise import find_family, shapes_of
from mmvssm.files import Progress
from mmvssm.messages import brief, join_names, printable
from mmvssm.models.layers.tokens import cls_positions, remove_tokens
from mmvssm.version import __version__

from .arch import Found, declared_backbones, find_arch, find_in_config, hold_against, read_config
from .heads import check_content, check_heads, content_of
from .weights import Weights, behind_prefix, find_weights, own_meta, select_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Entries of a file's ``meta`` that remain valid after the conversion.
KEPT_META = ("dataset_meta", "epoch", "iter")
POS_EMBED = f"{PREFIX}pos_embed"
_OUT_NORM = re.compile(rf"^{re.escape(PREFIX)}norm\d+\.")
# Numbers checked at a time, so that a large tensor needs no large mask.
_CHUNK = 2**24


@dataclass(frozen=True)
class Selected:
    """Weights of one kind, the content of the file, and that of the result."""

    weights: Weights
    source: str
    content: str
    config: Config | None


@dataclass(frozen=True)
class Renamed:
    """All weights under our names, those to keep, and whether the file already had our names."""

    key_map: KeyMap
    everything: dict[str, Tensor]
    kept: dict[str, Tensor]
    is_ours: bool


@dataclass(frozen=True)
class Fitted:
    """Complete weights, their backbone, and the names of newly initialised norms."""

    found: Found
    state_dict: dict[str, Tensor]
    reinitialised: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converted:
    """Weights of a checkpoint under our names, complete and finite.

    Attributes:
        weights: The weights of the file, under its own names.
        found: The backbone that they fit.
        source, content: Content of the file and of ``state_dict``, of :data:`~.heads.CONTENTS`.
        names: Naming of the project (see :func:`release_names`); None for weights trained here.
        state_dict: The weights; the backbone's have the prefix ``backbone.``.
        reinitialised: Names in ``state_dict`` that the file lacks: newly initialised norms.
        unused: Names in the file that are not used, if ``source`` and ``content`` are the same.
        heads_checked: Whether heads were compared with a config's model, too.
        meta: Description of the weights to store with them, in plain types.
    """

    weights: Weights
    found: Found
    source: str
    content: str
    names: str | None
    state_dict: dict[str, Tensor]
    reinitialised: tuple[str, ...]
    unused: tuple[str, ...]
    heads_checked: bool
    meta: Mapping[str, Any]


def convert(
    checkpoint: Mapping[str, Any],
    *,
    arch: str | None = None,
    weights: str = "auto",
    to: str | None = None,
    dtype: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Converted:
    """Convert the weights of a checkpoint to our names, and check every one of them.

    Args:
        checkpoint: Content of a released or trained file, from :func:`read_checkpoint`.
        arch: Arch to compare the weights with: ``'tiny'``, ``'vim/tiny'``, or the path of a config,
            whose heads are compared, too. None uses the backbone that the file declares if it fits,
            else the named arch of the family that fits.
        weights: ``'ema'`` (averaged weights), ``'online'`` (weights as trained) or ``'auto'``: the
            weights that gave the authors' results; for other files, the average if there is one.
        to: Content of the result, one of :data:`~.heads.CONTENTS`; None for that of the file. A
            ``'detector'`` or ``'segmentor'`` from a file without one is the backbone in the configs
            of this task, with newly initialised output norms.
        dtype: A key of :data:`DTYPES` for all floating-point weights; None keeps their dtypes.
        progress: Called with the number of bytes checked so far and in total.

    Raises:
        ValueError: If the file has no such weights, or if some are missing, left over, of another
            shape or dtype, or not finite; the message lists them.
    """
    # first, as it may declare families
    config = read_config(arch) if arch is not None and arch.endswith(".py") else None
    selected = select(checkpoint, weights, to, config)
    renamed, found = _identify(selected, checkpoint, arch)
    published, kinds = found.family.published, {other.kind for other in find_weights(checkpoint)}
    if weights == "auto" and not renamed.is_ours and published in kinds - {selected.weights.kind}:
        selected = select(checkpoint, published, to, config)
        renamed, found = _identify(selected, checkpoint, arch)
    source, content, heads_checked = selected.source, selected.content, False
    is_same = content == source
    if is_same and to != "backbone":
        heads_checked = check_heads(renamed.everything, content, found, config)
    fitted = fit(selected, renamed, found)
    state_dict = cast(fitted, dtype, progress)
    found, tensors = fitted.found, selected.weights.tensors
    names = own_meta(checkpoint).get("names")
    if names not in NAMES:
        names = None if renamed.is_ours else release_names(tensors, found.family)
    own: dict[str, Any] = dict(version=__version__, type=found.family.type, arch=found.arch)
    own |= dict(options=found.options, content=content, weights=selected.weights.kind, names=names)
    meta = checkpoint.get("meta")
    kept = {k: meta[k] for k in KEPT_META if k in meta} if isinstance(meta, Mapping) else {}
    meta = {**{k: v for k, v in kept.items() if _is_plain(v)}, "mmvssm": own}
    unused = renamed.key_map.unused(tensors, renamed.kept) if is_same else ()
    result = (selected.weights, found, source, content, names, state_dict, fitted.reinitialised)
    return Converted(*result, unused, heads_checked, meta)


def select(
    checkpoint: Mapping[str, Any], weights: str, to: str | None, config: Config | None
) -> Selected:
    """Select the weights of one kind; see :func:`convert`."""
    chosen = behind_prefix(select_weights(checkpoint, weights))
    source = content_of(chosen.tensors, config)
    content = source if to is None else to
    check_content(source, content)
    return Selected(chosen, source, content, config)


def rename(selected: Selected, family: Family) -> Renamed:
    """Rename weights, and keep those for the result."""
    key_map = KeyMap(family, "classification" if selected.content == "classifier" else "dense")
    everything = kept = key_map.to_ours(selected.weights.tensors)
    given = {key.removeprefix(PREFIX) for key in selected.weights.tensors}
    is_ours = backbone_of(everything).keys() <= given
    if selected.content != selected.source or selected.content == "backbone":
        # one of our classifiers has a norm in its backbone
        has_norm = is_ours and selected.source == "classifier"
        kept = {key: value for key, value in everything.items() if key.startswith(PREFIX)}
        kept = {k: v for k, v in kept.items() if not (has_norm and _OUT_NORM.match(k))}
    return Renamed(key_map, everything, kept, is_ours)


def _identify(
    selected: Selected, checkpoint: Mapping[str, Any], arch: str | None
) -> tuple[Renamed, Found]:
    """Find the backbone that is requested, that the file declares, or that fits; rename for it."""
    if selected.config is not None:
        found = find_in_config(selected.config, arch)
        renamed = rename(selected, found.family)
        return renamed, hold_against(found, _shapes(renamed), arch)
    for found in declared_backbones(checkpoint) if arch is None else ():
        try:
            renamed = rename(selected, found.family)
            return renamed, hold_against(found, _shapes(renamed), "the file")
        except Exception as error:  # constructors may raise anything on fields from a file
            said = printable(f"{found.family.type} {found.arch}")
            reason = f"which does not fit its weights{printable(brief(error), 200)}"
            warnings.warn(f"the file names {said} as its backbone, {reason}", stacklevel=3)
    word, _, name = (arch or "").rpartition("/")
    family = find_declared(word) if word else find_family(selected.weights.tensors)
    renamed = rename(selected, family)
    return renamed, find_arch(_shapes(renamed), family, name or None)


def fit(selected: Selected, renamed: Renamed, found: Found) -> Fitted:
    """Adapt the backbone to the content, and initialise output norms that the file lacks."""
    ours, content = _with_grid(renamed.kept, found), selected.content
    if content in (selected.source, "backbone"):
        return Fitted(found, ours)
    kept = {k: v for k, v in found.options.items() if k not in ("out_indices", "out_norm")}
    options = found.family.dense_options(found.build(), content)
    found = replace(found, options=kept | options)
    wanted = found.build().state_dict(prefix=PREFIX)
    norms = {key: value for key, value in wanted.items() if _OUT_NORM.match(key)}
    new: dict[str, Tensor] = {}
    if not norms.keys() <= ours.keys():
        new = {k: torch.full(v.shape, float(k.endswith("weight"))) for k, v in norms.items()}
    state_dict = {key: new[key] if key in new else ours[key] for key in wanted}
    return Fitted(found, state_dict, tuple(new))


def _with_grid(ours: dict[str, Tensor], found: Found) -> dict[str, Tensor]:
    """Add the grid of a position embedding if the file does not store it."""
    key = PREFIX + POS_GRID
    wanted = found.build().state_dict(prefix=PREFIX) if POS_EMBED in ours else {}
    if key in ours or key not in wanted:
        return ours
    height, width, _ = wanted[key].shape
    if "img_size" in found.options:
        warnings.warn(
            "the file does not store the grid of its position embedding; assuming"
            f" {height}x{width} patches",
            stacklevel=3,
        )
    return {**ours, key: torch.empty(height, width, 0)}


def cast(fitted: Fitted, dtype: str | None, progress: Progress) -> dict[str, Tensor]:
    """Return the weights in another dtype.

    Raises:
        ValueError: If weights have an unsupported dtype or are not finite.
    """
    expected = fitted.found.build().state_dict(prefix=PREFIX)
    floating = {*DTYPES.values()} | (set() if dtype is None else {torch.float64})
    strange, wrong, beyond, cast_weights = [], [], [], {}
    total, done = sum(value.nbytes for value in fitted.state_dict.values()), 0
    for key, value in fitted.state_dict.items():
        fitting = floating if key in expected else {*floating, torch.int64}  # counters of heads
        if key in expected and not expected[key].is_floating_point():
            fitting = {expected[key].dtype}
        cast_weights[key] = value
        if value.dtype not in fitting:
            strange.append(f"{key} is {value.dtype}".replace("torch.", ""))
        elif not is_finite(value):
            wrong.append(key)
        elif dtype is not None and value.is_floating_point():
            cast_weights[key] = value.to(DTYPES[dtype])
            if not is_finite(cast_weights[key]):
                beyond.append(key)
        done += value.nbytes
        progress(done, total)
    wanted = f"weights must be {', '.join(DTYPES)}, or fp64 with a --dtype to convert them to"
    for keys, message in (
        (strange, f"{wanted}, and counters int64"),
        (wrong, "weights are NaN or infinite, so the file is useless"),
        (beyond, f"weights are beyond the range of {dtype}, use bf16"),
    ):
        if keys:
            raise ValueError(f"{message}: {join_names(keys)}")
    return cast_weights


def is_finite(value: Tensor) -> bool:
    """Return whether a tensor has no NaN and no infinity, checking it in parts."""
    if not value.is_floating_point():
        return True
    return all(bool(part.isfinite().all()) for part in value.reshape(-1).split(_CHUNK))


def to_original(converted: Converted) -> dict[str, dict[str, Tensor]]:
    """Return the content of a file for the original project; see :meth:`KeyMap.to_original`."""
    found, family, weights = converted.found, converted.found.family, dict(converted.state_dict)
    names = converted.names
    if names is None:
        names = NAMES[found.arch in family.first_release_archs]
    # the projects' dense models are initialised from files of classifiers
    is_start = converted.content == "backbone" and not any(map(_OUT_NORM.match, weights))
    task, entries = "dense", family.dense_container
    if is_start or converted.content == "classifier":
        task, entries = "classification", family.container
    if found.options.get("drop_cls_token"):
        model = found.build()
        patches = math.prod(model.positions.grid)
        if weights[POS_EMBED].shape[1] != patches:  # the projects' tables lack class-token rows
            positions = cls_positions(model.positions.cls_place, patches)
            weights[POS_EMBED] = remove_tokens(weights[POS_EMBED], positions)
    return dict.fromkeys(entries, KeyMap(family, task).to_original(weights, names=names))


def _shapes(renamed: Renamed) -> dict[str, tuple[int, ...]]:
    return shapes_of(backbone_of(renamed.kept))


def backbone_of(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone's weights without their prefix."""
    return {key.removeprefix(PREFIX): v for key, v in ours.items() if key.startswith(PREFIX)}


def _is_plain(value: Any, depth: int = 6) -> bool:
    """Return whether a value consists of numbers, text and plain containers of them."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if type(value) in (list, tuple):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or type(value) in (str, int, float, bool)
