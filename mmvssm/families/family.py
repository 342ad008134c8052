"""The declaration of a family: all that the rest of the package needs to know about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mmvssm.registry import MODELS

from .rules import Rule

Rules = tuple[Rule, ...]
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Released:
    """A file that the authors released.

    Attributes:
        config: Name of our config for its model, without ``.py``.
        url: Where the authors keep it.
    """

    config: str
    url: str


@dataclass(frozen=True)
class ScanCost:
    """Multiply-accumulates of scans as the authors of a family count them.

    Attributes:
        per_state: For each state of a scanned element.
        per_element: For each scanned element in addition to its states.
        once: Whether convolution and projections count once instead of for every route.
        precision: Relative difference within which the published figures follow from this.
    """

    per_state: int = 9
    per_element: int = 1
    once: bool = False
    precision: float = 3e-3

    def macs(self, elements: float, d_state: int) -> float:
        """Count the multiply-accumulates of the scan itself.

        Args:
            elements: Scanned elements: routes x length x channels.
            d_state: States N of each.
        """
        return elements * (self.per_state * d_state + self.per_element)


@dataclass(frozen=True, eq=False)
class Family:
    """A family of backbones, declared once.

    Attributes:
        name: Name of the family and of its folder below ``configs``, such as ``'local_vim'``.
        backbone: Registered class with ``arch_settings``.
        trunk: Rules for the backbone's keys, applied in order to go from original names to ours.
        tasks: Further rules for norms, head and pyramid by task, ``'classification'`` and
            ``'dense'`` (detection and segmentation).
        linear: Expression of the weights that files may hold as 1x1 convolutions.
        container: Entries of a file in which the project's code looks for a classifier's weights.
        dense_container: The same for a detector's or segmentor's.
        stacked: Expression of the tensors whose parts get a new first axis; the parts of others
            are joined along their first axis.
        count_parts: Maps a key and all our tensors to the number of parts in which files hold the
            tensor, None for one that they do not divide; None if they divide no tensor.
        first_release: Rules from the names of the project's first release to its current ones.
        first_release_archs: Our archs that had weights in the first release; what is trained here
            is written with its names, which both generations of the project's code read.
        detector: Rules for all outside of the backbone in detectors with the project's own pyramid
            as neck.
        detector_key: A key by which such a detector is known, in original names and in ours.
        sign: Expression of keys that only this family's blocks have, in original names or ours.
        scan: Expression of keys by which a block is known that shows no family's ``sign``.
        variants: Options of the backbone that give its blocks further weights.
        read_options: Maps shapes by our key and the fields of an arch to the options that a
            backbone of the arch needs to have these shapes.
        dense_options: Maps the backbone of a classifier and ``'detector'`` or ``'segmentor'`` to
            the options that the backbone has in our configs, beyond the defaults.
        released: Files that the authors released.
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
    cost: ScanCost = ScanCost()

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
    """Make a family known to the converter, the analysis and whatever else walks over families.

    Projects of users call this for families of their own, next to the backbone.

    Raises:
        ValueError: If another family has the name or the class.
    """
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
    """Return the declaration of a family.

    Args:
        family: A declaration, which is returned, or its name, prefix, class or type.

    Raises:
        ValueError: If no family has the name; the message lists those that are declared.
    """
    if isinstance(family, Family):
        return family
    found = next((known for known in FAMILIES.values() if known.names_it(family)), None)
    if found is None:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    return found


def arch_names() -> dict[str, tuple[Family, str]]:
    """Return family and ``arch`` of every variant, by names such as ``vmamba-tiny-s1l8``."""
    return {
        f"{family.prefix}-{arch}": (family, arch)
        for family in FAMILIES.values()
        for arch in family.backbone.arch_settings
    }
