"""Search for the arch and the constructor options of a backbone that weights fit exactly."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmvssm import config_path
from mmvssm.families import FAMILIES, Family
from mmvssm.families.key_map import POS_GRID
from mmvssm.families.recognise import named_shapes, shapes_of
from mmvssm.messages import brief, join_names
from mmvssm.models.backbones.plain import PlainBackbone
from mmvssm.models.layers.tokens import CLASS_TOKENS

#: Options in which models of different tasks differ although their network is the same.
OUTPUTS = ("out_indices", "out_norm", "drop_cls_token", "img_size")
#: Limits beyond any real network, so that a file cannot make building one take long.
_MAX_NUMBER, _MAX_BLOCKS, _MAX_STAGES, _MAX_ITEMS, _MAX_TEXT = 4096, 512, 8, 512, 1 << 20

Shapes = Mapping[str, Sequence[int]]


class ArchError(ValueError):
    """Weights do not fit an arch."""


class Differences(NamedTuple):
    """Keys that are unexpected, missing, or have another shape or dtype."""

    left_over: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def number(self) -> int:
        """Number of keys that differ."""
        return sum(map(len, self))

    def __str__(self) -> str:
        titles = ("left over", "missing", "of another shape or type")
        parts = [
            f"{len(keys)} {title}: {join_names(keys)}" for title, keys in zip(titles, self) if keys
        ]
        return "; ".join(parts) or "no difference"


def compare(
    given: Mapping[str, Tensor | Sequence[int]], wanted: Mapping[str, Tensor | Sequence[int]]
) -> Differences:
    """Compare weights, or their shapes, with a model's: keys, shapes, and dtypes of integers."""
    both = [(key, _describe(given[key]), _describe(wanted[key])) for key in wanted if key in given]
    return Differences(
        tuple(key for key in given if key not in wanted),
        tuple(key for key in wanted if key not in given),
        tuple(f"{key} {got} instead of {want}" for key, got, want in both if got != want),
    )


def _describe(value: Tensor | Sequence[int]) -> str:
    """Format a shape, with the dtype of integers; a bare shape stands for floating point."""
    if not isinstance(value, Tensor) or value.is_floating_point():
        return str(tuple(value.shape if isinstance(value, Tensor) else value))
    return f"{tuple(value.shape)} of {str(value.dtype)[6:]}"


@dataclass(frozen=True)
class Found:
    """A backbone that weights fit.

    Attributes:
        family: Declaration of its family.
        arch: Name or fields of its arch.
        options: Further arguments of the constructor.
        others: Other archs whose networks have the same shapes.
    """

    family: Family
    arch: str | dict
    options: dict[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    @property
    def config(self) -> dict:
        """Config of the backbone."""
        return dict(type=self.family.type, arch=self.arch, **self.options)

    def build(self) -> nn.Module:
        """Build the backbone on the meta device."""
        with torch.device("meta"):
            return self.family.backbone(self.arch, **self.options)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of its weights by key."""
        if isinstance(self.arch, str) and not self.options:
            return named_shapes(self.family.backbone, self.arch)
        return shapes_of(self.build().state_dict())

    def differences(self, given: Shapes) -> Differences:
        """Compare the shapes of weights with the backbone's.

        Position embeddings may lack the rows of dropped class tokens, and their grid.
        """
        table = given.get("pos_embed", ())
        if self.options.get("drop_cls_token") and len(table) == 3:
            model = self.build()
            if isinstance(model, PlainBackbone) and model.positions.lacks_cls_rows(table[1]):
                rows = table[1] + CLASS_TOKENS[model.positions.cls_place]
                given = {**given, "pos_embed": (table[0], rows, table[2])}
        wanted = self.shapes()
        if POS_GRID in wanted and "pos_embed" in given:
            given = {POS_GRID: wanted[POS_GRID], **given}
        return compare(given, wanted)

    def with_outputs_of(self, given: Shapes) -> Found:
        """Return the same network with the outputs and the image size inferred from weights."""
        arch = self.family.backbone.read_arch(self.arch)
        options = {name: value for name, value in self.options.items() if name not in OUTPUTS}
        arch |= {k: value for k, value in options.items() if k in arch and value is not None}
        own = self.family.read_options(given, arch)
        options |= {name: value for name, value in own.items() if name in OUTPUTS}
        if self.options.get("drop_cls_token") and "cls_token" not in given:
            options["drop_cls_token"] = True
        return replace(self, options=options)


def find_arch(given: Shapes, family: Family, name: str | None = None) -> Found:
    """Return the named arch that fits the weights exactly with the fewest options.

    Args:
        given: Shapes of the weights by our keys, without the prefix ``backbone.``.
        family: The family.
        name: The only arch to compare with; None for all.

    Raises:
        ArchError: If no arch fits; the message lists the differences from the nearest one.
        ValueError: If ``name`` is unknown.
    """
    names = family.backbone.arch_settings
    if name is not None and name not in names:
        known = f"one of {', '.join(names)} for the family {family.name}"
        raise ValueError(f"arch must be {known}, or the path of a config (.py); got {name!r}")
    distances = {
        arch: len(_outline(given) ^ _outline(named_shapes(family.backbone, arch)))
        for arch in (names if name is None else [name])
    }
    nearest = [arch for arch in distances if distances[arch] == min(distances.values())]
    tried = [_with_options(given, family, arch) for arch in nearest]
    fits = [found for found, differences, _ in tried if not differences.number]
    if not fits:
        found, differences, reason = min(tried, key=lambda one: one[1].number)
        raise ArchError(
            f"the weights do not fit {family.backbone.__name__} {found.arch!r}{reason}, the nearest"
            f" arch; for another network, name its config file (--arch CONFIG.py);"
            f" differences: {differences}"
        )

    # sides of images are usually multiples of 32 pixels
    def is_odd(found: Found) -> bool:
        size = found.options.get("img_size", 0)
        return any(side % 32 for side in (size if isinstance(size, tuple) else (size,)))

    fits.sort(key=lambda found: (len(found.options), is_odd(found)))
    best, *rest = fits
    others = tuple(fit.arch for fit in rest if len(fit.options) == len(best.options))
    return replace(best, others=others)


def _outline(shapes: Shapes) -> set[tuple[str, tuple[int, ...]]]:
    """Return keys and shapes of the layers that constructor options do not affect."""
    layers = ("proj.weight", "fc1.weight", "expand.weight")
    blocks = {key: shapes[key] for key in shapes if key.startswith(("stages.", "layers."))}
    return {(key, tuple(shape)) for key, shape in blocks.items() if key.endswith(layers)}


def _with_options(given: Shapes, family: Family, arch: str) -> tuple[Found, Differences, str]:
    """Return a named arch with options inferred from weights, the differences, and a reason."""
    found = Found(family, arch)
    try:
        own = replace(found, options=family.read_options(given, family.backbone.read_arch(arch)))
        return own, own.differences(given), ""
    except (ValueError, RuntimeError) as error:
        # no options fit: compare with the arch without options
        return found, found.differences(given), brief(error)


def read_config(path: str) -> Config:
    """Read a config file, or ``'mmvssm::vim/NAME.py'``; its imports may declare families.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    is_ours, name = path.startswith("mmvssm::"), path.removeprefix("mmvssm::")
    file = config_path(name) if is_ours else path
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no config file {path!r} to take the arch from")
    try:
        return Config.fromfile(file)
    # config files are programs, which may raise anything or exit
    except (Exception, SystemExit) as error:
        raise ValueError(f"the config {path!r} cannot be read{brief(error)}") from None


def find_in_config(config: Config, path: str) -> Found:
    """Return the backbone of a config.

    Raises:
        ValueError: If the config has no backbone of a declared family.
    """
    try:
        backbone = dict(config.to_dict()["model"]["backbone"])
    except Exception as error:  # malformed dicts, and classes that cannot be imported
        raise ValueError(f"no model.backbone can be read from {path!r}{brief(error)}") from None
    found = _from_fields(backbone)
    if found is None:
        kind, names = backbone.get("type"), ", ".join(FAMILIES)
        raise ValueError(f"the backbone of {path!r} must be one of {names}, got the type {kind!r}")
    return found


def hold_against(found: Found, given: Shapes, path: str) -> Found:
    """Return a backbone with outputs and image size inferred from weights.

    Raises:
        ArchError: If the weights do not fit.
        ValueError: If the backbone cannot be built.
    """
    try:
        differences = found.differences(given)
        own = found.with_outputs_of(given) if differences.number else found
        if not own.differences(given).number:
            return own
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the backbone of {path!r} cannot be built{brief(error)}") from None
    name = found.family.backbone.__name__
    raise ArchError(f"the weights do not fit {name} of {path!r}; differences: {differences}")


def declared_backbones(checkpoint: Mapping[str, Any]) -> Iterator[Found]:
    """Yield the backbones that a file declares, unverified and not built.

    Our own files store it, as does the config text of MMEngine, which is parsed as data.
    """
    meta = checkpoint.get("meta")
    own, text = (meta.get("mmvssm"), meta.get("cfg")) if isinstance(meta, Mapping) else (None, None)
    said = []
    if isinstance(own, Mapping) and isinstance(own.get("options", {}), Mapping):
        said.append({**own.get("options", {}), "type": own.get("type"), "arch": own.get("arch")})
    if isinstance(text, str):
        said.append(_backbone_in_text(text))
    for backbone in said:
        found = _from_fields(backbone)
        if found is not None and _is_modest(found.arch) and _is_modest(found.options):
            yield found


def _from_fields(backbone: Mapping[str, Any]) -> Found | None:
    """Return the backbone of a config's dict; None if its type is no family's."""
    kind = backbone.get("type")
    word = str(getattr(kind, "__name__", kind)).rpartition(".")[2]
    family = next((one for one in FAMILIES.values() if one.backbone.__name__ == word), None)
    if family is None:
        return None
    default = inspect.signature(family.backbone).parameters["arch"].default
    arch = default if backbone.get("arch") is None else backbone["arch"]
    dropped = ("type", "arch", "init_cfg", "_scope_")  # the rest determines the network
    return Found(family, arch, {k: v for k, v in backbone.items() if k not in dropped})


def _is_modest(value: Any, depth: int = 6) -> bool:
    """Return whether fields from a file are small enough to build, or reject, in a short time."""
    if isinstance(value, Mapping):
        depths = value.get("depths", ())
        blocks = [value.get("num_layers", 0), *(depths if isinstance(depths, list | tuple) else ())]
        if not all(type(n) is int and n >= 0 for n in blocks) or sum(blocks) > _MAX_BLOCKS:
            return False
        value = list(value.values()) if len(blocks) <= 1 + _MAX_STAGES else object()
    if isinstance(value, list | tuple | str) and len(value) > _MAX_ITEMS * (depth > 0):
        return False
    if isinstance(value, list | tuple):
        return all(_is_modest(item, depth - 1) for item in value)
    is_number = isinstance(value, int | float)
    return abs(value) <= _MAX_NUMBER if is_number else value is None or isinstance(value, str)


class _DictCalls(ast.NodeTransformer):
    """Transformer of calls ``dict(a=1)`` to literals ``{'a': 1}``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
            keys = [ast.Constant(word.arg) for word in node.keywords]
            return ast.Dict(keys, [word.value for word in node.keywords])
        return node


def _backbone_in_text(text: str) -> dict[str, Any]:
    """Return ``model.backbone`` of a config text if it consists of literals and ``dict`` calls."""
    try:
        tree = _DictCalls().visit(ast.parse(text if len(text) <= _MAX_TEXT else ""))
        for node in tree.body:
            is_assignment = isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
            if is_assignment and getattr(node.targets[0], "id", None) == "model":
                for key, value in zip(node.value.keys, node.value.values):
                    if getattr(key, "value", None) == "backbone":
                        backbone = ast.literal_eval(value)
                        return backbone if isinstance(backbone, dict) else {}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return {}  # not the text of a config
    return {}
