"""Family, arch and constructor options of a backbone, found from keys and shapes of its weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from mmvssm import config_path, models
from mmvssm.models.backbones.plain import PlainBackbone
from mmvssm.models.layers.tokens import CLASS_TOKENS

from ..messages import join_names, printable
from ..names import KEY_MAPS
from . import hierarchical, plain
from .shapes import Differences, Shapes, Unreadable, compare, shapes_of

TYPES = {name: family.backbone.__name__ for name, family in KEY_MAPS.items()}
SIGNS = {name: family.sign for name, family in KEY_MAPS.items() if family.sign}
SCANS = {name: family.scan for name, family in KEY_MAPS.items() if family.scan}
#: What names of a backbone's blocks begin with; what is beside it may have blocks of any name.
_BLOCK = re.compile(r"(?:backbone\.)?(?:net\.)?((?:layers|stages)(?:\.\d+)?(?:\.blocks)?\.\d+\.)")
#: More blocks than any network has; building them takes milliseconds each.
MAX_BLOCKS = 512
#: How many archs of similar sizes weights without an arch are compared with.
NEARBY = 3


#: What the names of our own config files begin with.
OURS = "mmvssm::"
#: Options in which models of other tasks differ that have the same network.
OUTPUTS = ("out_indices", "out_norm", "drop_cls_token", "img_size")


class UnknownFamilyError(ValueError):
    """Keys are of none of our families."""


class MixedFamiliesError(ValueError):
    """Keys are of several families."""


class ArchError(ValueError):
    """Weights do not fit an arch."""


@dataclass(frozen=True)
class Found:
    """A backbone that weights fit.

    Attributes:
        family: A key of :data:`KEY_MAPS`.
        type: Its class.
        arch: A name of the class's table, or a dict of fields.
        options: Further arguments that the weights ask for.
        others: Other names whose networks have the same shapes: directions of scans, for
            instance, are not stored with weights.
    """

    family: str
    type: str
    arch: str | dict
    options: dict[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    @property
    def config(self) -> dict:
        """The backbone in a config's ``model``."""
        return dict(type=f"mmvssm.{self.type}", arch=self.arch, **self.options)

    def build(self) -> nn.Module:
        """The backbone, on the device of the context."""
        return getattr(models, self.type)(self.arch, **self.options)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its weights by key; takes no memory for them."""
        with torch.device("meta"):
            return shapes_of(self.build().state_dict())

    def differences(self, given: Mapping[str, Sequence[int]]) -> Differences:
        """Where weights differ from the backbone's, unless it loads them nevertheless.

        It does so with a position embedding that lacks the rows of class tokens, if it drops them;
        see :meth:`PlainBackbone.lacks_cls_rows`.

        Args:
            given: Shapes by key.
        """
        with torch.device("meta"):
            model = self.build()
        is_plain, table = isinstance(model, PlainBackbone), given.get("pos_embed", ())
        if is_plain and len(table) == 3 and model.lacks_cls_rows(table[1]):
            num_class = CLASS_TOKENS[model.cls_place]
            given = {**given, "pos_embed": (table[0], table[1] + num_class, table[2])}
        return compare(given, shapes_of(model.state_dict()))


def find_family(keys: Iterable[str]) -> str:
    """The family of a file's backbone.

    Args:
        keys: Keys of the file in its authors' names or ours, those of necks and heads as well.

    Returns:
        A key of :data:`KEY_MAPS`.

    Raises:
        UnknownFamilyError: If there is no backbone of ours in the file.
        MixedFamiliesError: If there are keys of several.
    """
    keys = list(keys)
    found: dict[str, str] = {}
    signed: set[str] = set()
    scanning: dict[str, tuple[str, str]] = {}
    for key in keys:
        match = _BLOCK.match(key)
        if match is None:
            continue
        block, name = match.group(1), key[match.start(1) :]
        for family, sign in SIGNS.items():
            if re.search(sign, name):
                found.setdefault(family, key)
                signed.add(block)
        for family, scan in SCANS.items():
            if re.search(scan, name):
                scanning.setdefault(block, (family, key))
    for block, (family, key) in scanning.items():
        if block not in signed:
            found.setdefault(family, key)
    if not found:
        raise UnknownFamilyError(
            f"there is no backbone of {', '.join(KEY_MAPS)} among the keys"
            f" {join_names(keys, 4) or '(there are none)'}; check that it is the right file"
        )
    if len(found) > 1:
        named = " and ".join(f"{family} ({printable(key)})" for family, key in found.items())
        raise MixedFamiliesError(
            f"the keys mix families: {named}; a file must hold one network only"
        )
    return next(iter(found))


def find_arch(shapes: Mapping[str, Sequence[int]], family: str, arch: str | None = None) -> Found:
    """The arch and the constructor options of a backbone, from the shapes of its weights.

    Names of the family's table are preferred, those first that need the fewest options. Weights
    that fit none of them get a dict of fields. What shapes do not show is as
    :mod:`mmvssm.checkpoint.arch.fields` says.

    Args:
        shapes: Shapes by key in our names, without the prefix ``backbone.``.
        family: A key of :data:`KEY_MAPS`.
        arch: A name such as ``'tiny'``, ``'vim/tiny'`` or ``'Vim/tiny'``, or the path of a config
            file, one of ours also as ``'mmvssm::vim/NAME.py'``, whose ``model.backbone`` is taken,
            if need be for the image size and the output norms that the weights have: classifiers
            fit the configs of detectors; None to find it.

    Returns:
        The backbone, which has exactly the given keys and shapes; one with ``drop_cls_token`` may
        have rows of class tokens that the given position embedding lacks.

    Raises:
        ArchError: If the weights fit no arch, or not the one that is given; the message lists where
            they differ from it or from the nearest.
        ValueError: If ``family`` or ``arch`` is unknown.
        FileNotFoundError: If there is no such config file.
    """
    if family not in TYPES:
        raise ValueError(f"family must be one of {', '.join(TYPES)}, got {family!r}")
    given = Shapes(shapes)
    if len(given.blocks) > MAX_BLOCKS:
        raise ArchError(
            f"the weights have {len(given.blocks)} blocks, more than {MAX_BLOCKS}, which no network"
            " of ours has; check that it is the right file"
        )
    if arch is None:
        return _fitting_name(given, family) or _from_fields(given, family)
    if arch.endswith(".py"):
        found, reason = _from_config(arch, family), ""
        try:
            differences = found.differences(given.shapes)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"the backbone of {arch!r} cannot be built{_brief(error)}") from None
        own = _with_own_outputs(given, found) if differences else None
        if own is not None:
            return own
    else:
        found, differences, reason = _try_name(given, family, _read_name(arch, family))
    if differences:
        raise ArchError(
            f"the weights do not fit {found.type} {arch!r}{reason}; name another arch, or the"
            f" config file of their network; differences: {differences}"
        )
    return found


def _fitting_name(given: Shapes, family: str) -> Found | None:
    """The named arch that fits best; None if there is none."""
    names = [name for name, distance in _distances(given, family).items() if distance == (0, 0)]
    tried = [_try_name(given, family, name) for name in names]
    fits = [found for found, differences, _ in tried if not differences]

    def rank(found: Found) -> tuple[int, bool]:
        # images are usually of multiples of 32 pixels
        img_size = found.options.get("img_size", 0)
        return len(found.options), isinstance(img_size, int) and img_size % 32 > 0

    fits.sort(key=rank)
    if not fits:
        return None
    others = [fit.arch for fit in fits[1:] if len(fit.options) == len(fits[0].options)]
    return replace(fits[0], others=tuple(others))


def _distances(given: Shapes, family: str) -> dict[str, tuple[int, int]]:
    """Names of the family, nearest first, with how many widths and how many blocks differ."""
    cls, reader = _class(family), _reader(family)
    try:
        dims, depths = reader.outline(given)
    except Unreadable:
        dims = depths = ()
    distances = {}
    for name in cls.arch_settings:
        wanted_dims, wanted_depths = reader.outline_of(cls.read_arch(name))
        distances[name] = (
            sum(a != b for a, b in zip_longest(dims, wanted_dims)),
            sum(abs(a - b) for a, b in zip_longest(depths, wanted_depths, fillvalue=0)),
        )
    return dict(sorted(distances.items(), key=itemgetter(1)))


def _try_name(given: Shapes, family: str, name: str) -> tuple[Found, Differences, str]:
    """A named arch with the options that the weights ask for, what differs, and why it must."""
    found = Found(family, TYPES[family], name)
    try:
        options = _reader(family).read_options(given, _class(family).read_arch(name), family)
        own = replace(found, options=options)
        return own, own.differences(given.shapes), ""
    except (ValueError, RuntimeError) as error:
        # no options explain these shapes: they are compared with those of the arch itself
        return found, found.differences(given.shapes), _brief(error)


def _from_fields(given: Shapes, family: str) -> Found:
    """An arch of fields that fits; raises ArchError if there is none."""
    cls, reader, reason = _class(family), _reader(family), ""
    tried: list[tuple[Found, Differences]] = []
    try:
        # fields that the class does not know stay out: what they say is then in the differences
        fields = {
            name: value
            for name, value in reader.read_fields(given, family).items()
            if value != cls.arch_defaults.get(name, value)
        }
        options = reader.read_options(given, cls.read_arch(fields), family)
        found = Found(family, TYPES[family], fields, options)
        differences = found.differences(given.shapes)
        if not differences:
            return found
        tried = [(found, differences)]
    except (ValueError, RuntimeError) as error:  # RuntimeError: of sizes that torch refuses
        reason = _brief(error)
    nearby = list(_distances(given, family))[:NEARBY]
    # of equally near ones the first is taken: a name says more than fields
    tried = [*(_try_name(given, family, name)[:2] for name in nearby), *tried]
    nearest, differences = min(tried, key=lambda one: len(one[1]))
    raise ArchError(
        f"the weights fit no arch of {TYPES[family]}{reason}; if their network is another than the"
        f" nearest, {nearest.arch!r}, name its config file as arch; differences: {differences}"
    )


def _read_name(arch: str, family: str) -> str:
    """The name in ``arch``, which may stand behind a family or class."""
    of, _, name = arch.rpartition("/")
    names = ", ".join(_class(family).arch_settings)
    if of and _plain_word(of) != _plain_word(family):
        raise ValueError(
            f"arch {arch!r} must be of {TYPES[family]}, as the weights are of the family {family};"
            f" there are {names}"
        )
    if name not in _class(family).arch_settings:
        raise ValueError(
            f"arch must be one of {names} for the family {family}, or the path of a config file"
            f" that ends in .py; got {arch!r}"
        )
    return name


def read_config(path: str) -> Config:
    """A config file: its path, or ``'mmvssm::vim/NAME.py'`` for one of ours.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or ends the program.
    """
    file = config_path(path.removeprefix(OURS)) if path.startswith(OURS) else path
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no config file {path!r} to take the arch from")
    try:
        return Config.fromfile(file)
    # config files are programs, which fail in every possible way, or end ours
    except (Exception, SystemExit) as error:
        raise ValueError(f"the config {path!r} cannot be read{_brief(error)}") from None


def _from_config(path: str, family: str) -> Found:
    """The backbone of a config file, as it is."""
    config = read_config(path)
    try:
        options = dict(config.to_dict()["model"]["backbone"])
    except Exception as error:  # dicts of any form, and classes that cannot be imported
        raise ValueError(f"no model.backbone can be read from {path!r}{_brief(error)}") from None
    kind = options.pop("type", None)
    kind = str(getattr(kind, "__name__", kind)).split(".")[-1]
    if kind != TYPES[family]:
        raise ValueError(
            f"the backbone of {path!r} must be {TYPES[family]}, as the weights are of the family"
            f" {family}; got {kind!r}"
        )
    default = inspect.signature(_class(family)).parameters["arch"].default
    arch = options.pop("arch", default)
    for name in ("init_cfg", "_scope_"):
        options.pop(name, None)
    return Found(family, kind, arch, options)


def _with_own_outputs(given: Shapes, found: Found) -> Found | None:
    """The same network with the outputs and the image size of the weights; None if they differ."""
    arch = _class(found.family).read_arch(found.arch)
    options = {name: value for name, value in found.options.items() if name not in OUTPUTS}
    arch |= {name: value for name, value in options.items() if name in arch and value is not None}
    try:
        own = _reader(found.family).read_options(given, arch, found.family)
        options |= {name: value for name, value in own.items() if name in OUTPUTS}
        if found.options.get("drop_cls_token") and "cls_token" not in given:
            options["drop_cls_token"] = True
        own = replace(found, options=options)
        return None if own.differences(given.shapes) else own
    except (ValueError, RuntimeError):  # RuntimeError: of sizes that torch refuses
        return None


def _class(family: str) -> type:
    return getattr(models, TYPES[family])


def _reader(family: str) -> ModuleType:
    """What knows the fields of the family's archs."""
    return plain if issubclass(_class(family), PlainBackbone) else hierarchical


def _plain_word(name: str) -> str:
    return re.sub(r"[-_]", "", name).lower()


def _brief(error: BaseException) -> str:
    words = str(error).split("\n", 1)[0]
    if isinstance(error, SystemExit):
        words = f"it ends with sys.exit({error.code!r})"
    return f" ({words or type(error).__name__})"
