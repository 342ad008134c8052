"""What the readers of all families use: the models of a case, and checks of its words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from mmvssm.families import Family as KeyMap

from ..compare import MalformedCase, UnsupportedCase

#: Our words for ``v_reverse``.
OUTPUT_ORDERS = {"inverse": "inverse", "upstream": "upstream"}


@dataclass(frozen=True)
class Reading:
    """How to build what a case describes.

    Attributes:
        family: Family of the key map, or the key map of this form alone.
        build: From a task (``'classification'`` or ``'dense'``) to a model with ``backbone``
            that maps an image to a dict of outputs.
        probes: From a name of an output inside the backbone to the path of the module there whose
            output it is, and what to take of it.
        inputs: From a name of something inside the backbone to the path of the module there whose
            first input it is.
    """

    family: str | KeyMap
    build: Callable[[str], nn.Module]
    probes: Mapping[str, tuple[str, Callable[..., Tensor]]] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)


class Classifier(nn.Module):
    """Backbone, mean over the pixels of its last map, linear head."""

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.ModuleDict({"fc": nn.Linear(backbone.embed_dims[-1], num_classes)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``(B, C, H, W)`` -> ``pooled (B, C')`` and ``logits (B, num_classes)``."""
        pooled = self.backbone(x)[-1].mean((2, 3))
        return {"pooled": pooled, "logits": self.head["fc"](pooled)}


class Dense(nn.Module):
    """Backbone whose maps, of some or all stages, pass their own norm."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``(B, C, H, W)`` -> ``stage{i}`` of its stages, each ``(B, C_i, H_i, W_i)``."""
        stages = sorted(set(self.backbone.out_indices))
        return {f"stage{i}": out for i, out in zip(stages, self.backbone(x))}


def read_hierarchical(
    family: str, backbone: Callable[..., nn.Module], options: dict, num_classes: int, **probes
) -> Reading:
    """The models of a hierarchical backbone.

    Args:
        family: Family of the key map.
        backbone: The class.
        options: Its arguments, with a dict as ``arch``; ``out_indices`` are those of maps.
        num_classes: Classes of the head.
        **probes: See :class:`Reading`.
    """

    def build(task: str) -> nn.Module:
        if task == "dense":
            return Dense(backbone(**options))
        last = len(options["arch"]["depths"]) - 1
        return Classifier(backbone(**{**options, "out_indices": (last,)}), num_classes)

    return Reading(family, build, probes)


def whole_output(output: Tensor) -> Tensor:
    """What to take of a module with one output, see :class:`Reading`."""
    return output


def choice(name: str, value: str, choices: Mapping[str, str]) -> str:
    """Our word for one of the reference's, which must be one of ``choices``."""
    if value not in choices:
        raise MalformedCase(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return choices[value]


def read_dt_rank(ranks: int | str | list[int] | None, dims: list[int]) -> int | None:
    """One rank for all stages, or None for ``ceil(width / 16)``; ``dims`` are their widths."""
    if isinstance(ranks, int):
        return ranks
    if ranks in (None, "auto") or ranks == [math.ceil(dim / 16) for dim in dims]:
        return None
    if len(set(ranks)) > 1:
        raise UnsupportedCase(
            f"dt_rank {ranks}: neither ceil(width / 16) nor one rank for all stages"
        )
    return ranks[0]
