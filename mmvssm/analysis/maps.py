"""Recording of the last map inside a backbone of any family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mmvssm.models.backbones.hierarchical import HierarchicalBackbone
from mmvssm.models.backbones.plain import PlainBackbone
from mmvssm.models.layers.tokens import remove_tokens


@dataclass
class MapRecord:
    """The output of a module in a forward pass.

    Attributes:
        output: Output with its graph, a map or a sequence of tokens.
        channels_first: Whether a map is ``(B, C, H, W)`` instead of ``(B, H, W, C)``.
        size: Grid ``(H, W)`` of the tokens; None for a map.
        cls_positions: Indices of class tokens among the tokens.
    """

    output: Tensor = field(init=False)
    channels_first: bool = False
    size: tuple[int, int] | None = None
    cls_positions: Sequence[int] = ()

    def to_map(self, x: Tensor) -> Tensor:
        """Convert a tensor shaped like ``output``, such as its gradient, to ``(B, H, W, C)``."""
        if self.size is None:
            return x.permute(0, 2, 3, 1) if self.channels_first else x
        return remove_tokens(x, self.cls_positions).unflatten(1, self.size)


@contextmanager
def recorded_map(backbone: nn.Module, back: int = 0, normed: bool = False) -> Iterator[MapRecord]:
    """Record the last map of a backbone while it runs.

    Args:
        backbone: A hierarchical or plain backbone; the map is the output of its last stage or
            layer, before the norm.
        back: Number of layers to go back from the last one; only for plain backbones.
        normed: Record the map after the output norm; only for hierarchical backbones.

    Raises:
        TypeError: If the backbone is of neither kind.
    """
    is_map = isinstance(backbone, HierarchicalBackbone)
    record, last = (
        MapRecord(channels_first=is_map and normed),
        max(getattr(backbone, "out_indices", (0,))),
    )

    def keep_map(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        record.output = output

    def keep_tokens(module: nn.Module, inputs: tuple, output: tuple[Tensor, Any]) -> None:
        record.output, record.size, record.cls_positions = output[0], inputs[1], inputs[2]

    if is_map:
        module = backbone.get_submodule(f"norm{last}" if normed else f"stages.{last}")
        handle = module.register_forward_hook(keep_map)
    elif isinstance(backbone, PlainBackbone):
        handle = backbone.layers[max(last - back, 0)].register_forward_hook(keep_tokens)
    else:
        raise TypeError(f"{type(backbone).__name__} is neither a hierarchical nor a plain backbone")
    try:
        yield record
    finally:
        handle.remove()
