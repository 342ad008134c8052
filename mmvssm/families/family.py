"""Declaration of a family: everything that the rest of the package needs to know about it."""

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
        url: URL of the file; None if the authors link only a page.
        page: Page with a manual download, such as a shared folder or a model page.
        weights: Weights that gave the published result: ``'ema'`` (averaged), ``'online'`` (as
            trained), or ``'auto'`` for the average if the file has one.
        variant: Suffix that distinguishes it from other files of the same config, such as
            ``'dp05'``.
        result: Published result if it differs from the config's.
        logs: URLs of the logs of its training and of its multi-scale test.
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
        """Name after ``mmvssm://``: that of the config, for classifiers without the schedule."""
        model = re.sub(r"_\d+xb\d+_in1k$", "", self.config)
        return f"{model}-{self.variant}" if self.variant else model


@dataclass(frozen=True, eq=False)
class Family:
    """A family of backbones. Regular expressions match keys under original names and ours.

    Attributes:
        name: Name of the family and of its folder in ``configs``, such as ``'local_vim'``.
        backbone: Registered class with ``arch_settings``.
        trunk: Rules for the backbone's keys, in the order from original names to ours.
        tasks: Further rules for norms, head and pyramid, by task.
        linear: Regular expression for weights that files may store as 1x1 convolutions.
        container: Entries of a file in which the project's code looks for a classifier.
        dense_container: The same for a detector or segmentor.
        stacked: Regular expression for tensors whose parts are stacked; others are concatenated.
        count_parts: Function of our key and all tensors that returns the number of parts of the
            tensor in files, or None if it is not split.
        first_release: Rules from the names of the project's first release to its current ones.
        first_release_archs: Archs of that release; models trained here are exported under its
            names.
        detector: Rules for keys outside of the backbone in the project's own detectors.
        detector_key: Key that identifies such a detector, under its original name and ours.
        sign: Regular expression for keys that only this family's blocks have.
        scan: Regular expression for keys of blocks, used if no family's ``sign`` matches.
        variants: Options of the backbone that add weights to its blocks.
        read_options: Function of our shapes and the fields of an arch that returns the options of
            the backbone.
        dense_options: Function of a classifier's backbone and a content that returns the options
            of the backbone in our detection or segmentation configs.
        released: Files that the authors released.
        published: Weights that gave the authors' results if a file has both: ``'ema'`` for the
            average, ``'online'`` for those as trained.
        licence: Clause on the licence of these files if it restricts their use.
        cost: FLOPs of a scan as the authors count them.
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
        """Prefix of the names of its configs and variants, such as ``'local-vim'``."""
        return self.name.replace("_", "-")

    @property
    def type(self) -> str:
        """``type`` of the backbone in a config."""
        name = self.backbone.__name__
        return f"mmvssm.{name}" if name in MODELS.module_dict else name

    def names_it(self, word: str) -> bool:
        """Return whether ``word`` is the family's name, prefix, class or type."""
        return word in (self.name, self.prefix, self.backbone.__name__, self.type)


#: Declared families by name, including those of user projects.
FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Register a family and return it.

    Raises:
        ValueError: If another family has the name or the class.
    """
    for other in FAMILIES.values():
        if other is not family and (
            other.name == family.name or other.backbone.__name__ == family.backbone.__name__
        ):
            raise ValueError(
                f"family {family.name!r} of {family.backbone.__name__} must have a unique name and"
                f" class; {other.name!r} of {other.backbone.__name__} is already declared"
            )
    FAMILIES[family.name] = family
    return family


def find_declared(family: str | Family) -> Family:
    """Return the declaration of a family, given by itself or by name, prefix, class or type.

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
    """Return family and ``arch`` of every variant by its name, such as ``vmamba-tiny-s1l8``."""
    return {
        f"{family.prefix}-{arch}": (family, arch)
        for family in FAMILIES.values()
        for arch in family.backbone.arch_settings
    }
