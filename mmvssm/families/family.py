"""The declaration of a family: all that the rest of the package needs to know about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mmvssm.complexity import ScanCost
from mmvssm.registry import MODELS

from .rules import Rule

Rules = tuple[Rule, ...]
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Released:
    """A file of weights that the authors published.

    Attributes:
        config: Name of our config for its model, without ``.py``.
        url: Where it can be downloaded; None if the authors have only a page for it.
        page: Page on which it is found by hand: a folder of a drive, the page of a model.
        weights: Which of its weights the published result is of, ``'ema'`` (averages) or
            ``'online'`` (as trained); ``'auto'`` for averages where it has some.
        variant: What tells it from another file of the same config, such as ``'dp05'``.
        result: Its published result, where it is another than the config's.
        logs: URLs of its training, and of its test with several scales.
    """

    config: str
    url: str | None = None
    page: str | None = None
    weights: str = "auto"
    variant: str = ""
    result: str = ""
    logs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What follows ``mmvssm://``: for a classifier without its batch, else the config."""
        model = re.sub(r"_\d+xb\d+_in1k$", "", self.config)
        return f"{model}-{self.variant}" if self.variant else model


@dataclass(frozen=True, eq=False)
class Family:
    """A family of backbones, declared once; expressions match keys in any of the names.

    Attributes:
        name: Name of the family and of its folder below ``configs``, such as ``'local_vim'``.
        backbone: Registered class with ``arch_settings``.
        trunk: Rules for the backbone's keys, in order from original names to ours.
        tasks: Further rules for norms, head and pyramid, by task.
        linear: Expression of the weights that files may hold as 1x1 convolutions.
        container: Entries of a file in which the project's code looks for a classifier.
        dense_container: The same for a detector or segmentor.
        stacked: Expression of the tensors whose parts are stacked; others are concatenated.
        count_parts: Maps our key and tensors to the number of its parts in files, None for none.
        first_release: Rules from the names of the project's first release to its current ones.
        first_release_archs: Archs of that release; what is trained here goes back to its names.
        detector: Rules for what is outside of the backbone of detectors of the project's own.
        detector_key: A key by which such a detector is known, in original names and in ours.
        sign: Expression of keys that only this family's blocks have.
        scan: Expression of keys by which a block is known that shows no family's ``sign``.
        variants: Options of the backbone that give its blocks further weights.
        read_options: Maps our shapes and the fields of an arch to the options of the backbone.
        dense_options: Maps a classifier's backbone and a content to options for our configs.
        released: Files that the authors released.
        published: Which weights of a file with both gave the authors' results: ``'ema'`` for the
            average, ``'online'`` for those as trained.
        licence: Licence of these files, in a clause, where it says what they may be used for.
        cost: How the authors count scans.
    """

    name: str
    backbone: type[Any]
    trunk: Rules = ()
    tasks: Mapping[str, Rules] = field(
        default_factory=lambda: dict.fromkeys(("classification", "dense"), ())
    )
    linear: str = r"(?!)"
    container: tuple[str, ...] = ("state_dict",)
    dense_container: tuple[str, ...] = ("state_dict",)
    stacked: str = r"\.(x_proj_weight|dt_projs_weight|dt_projs_bias)$"
    count_parts: Callable[[str, Mapping[str, Tensor]], int | None] | None = None
    first_release: Rules = ()
    first_release_archs: tuple[str, ...] = ()
    detector: Rules = ()
    detector_key: tuple[str, str] | None = None
    sign: str | None = None
    scan: str | None = None
    variants: tuple[Mapping[str, Any], ...] = ()
    read_options: Callable[[Shapes, Mapping[str, Any]], dict[str, Any]] = lambda shapes, arch: {}
    dense_options: Callable[[nn.Module, str], dict[str, Any]] = lambda backbone, content: {}
    released: tuple[Released, ...] = ()
    published: str = "ema"
    licence: str | None = None
    cost: ScanCost = field(default_factory=ScanCost)

    @property
    def prefix(self) -> str:
        """Beginning of the names of its configs and variants, such as ``'local-vim'``."""
        return self.name.replace("_", "-")

    @property
    def type(self) -> str:
        """``type`` of the backbone in a config."""
        name = self.backbone.__name__
        return f"mmvssm.{name}" if name in MODELS.module_dict else name

    def names_it(self, word: str) -> bool:
        """Whether ``word`` is the family's name, prefix, class or type."""
        return word in (self.name, self.prefix, self.backbone.__name__, self.type)


#: Declared families by name, those of other projects included.
FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Make a family known, also one of a user's project; ValueError if name or class is taken."""
    for other in FAMILIES.values():
        if other is not family and (
            other.name == family.name or other.backbone.__name__ == family.backbone.__name__
        ):
            raise ValueError(
                f"family {family.name!r} of {family.backbone.__name__} must have a name and a class"
                f" of its own, {other.name!r} of {other.backbone.__name__} is declared already"
            )
    FAMILIES[family.name] = family
    return family


def find_declared(family: str | Family) -> Family:
    """Return a declaration by itself, or by its name, prefix, class or type.

    Raises:
        ValueError: If no family has the name; the message lists those that are declared.
    """
    if isinstance(family, Family):
        return family
    for known in FAMILIES.values():
        if known.names_it(family):
            return known
    raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")


def arch_names() -> dict[str, tuple[Family, str]]:
    """Return family and ``arch`` of every variant, by names such as ``vmamba-tiny-s1l8``."""
    return {
        f"{family.prefix}-{arch}": (family, arch)
        for family in FAMILIES.values()
        for arch in family.backbone.arch_settings
    }
