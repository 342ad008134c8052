"""Criss-cross connectivity, which neighbours of a pixel belong to the same animal, with losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmseg.registry import MODELS
from torch import Tensor, nn

#: Row and column offset of the neighbour of each channel; channel 7 - k is opposite to channel k.
OFFSETS = ((-2, 0), (-1, 0), (0, -2), (0, -1), (0, 1), (0, 2), (1, 0), (2, 0))
#: Offsets at which the published code reads the opposite channel: always one step, even for
#: channels of two steps, and in the wrong direction for two of them.
PUBLISHED_OFFSETS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 1), (0, 1), (1, 0), (1, 0))
#: Probability from which the other decoder's prediction counts as a label.
PSEUDO_THRESHOLD = 0.5001


def neighbours(x: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """Return the value of each pixel's neighbour, zero outside of the map.

    Args:
        x: Maps ``(B, K, H, W)``.
        offsets: Row and column offset of the neighbour for each of K channels.
    """
    height, width = x.shape[-2:]
    reach = max(abs(step) for offset in offsets for step in offset)
    padded = F.pad(x, (reach,) * 4)
    rows_columns = [(reach + row, reach + column) for row, column in offsets]
    return torch.stack(
        [
            padded[:, channel, row : row + height, column : column + width]
            for channel, (row, column) in enumerate(rows_columns)
        ],
        dim=1,
    )


def connectivity(mask: Tensor) -> Tensor:
    """Return the product of each pixel with its eight neighbours: ``(B, H, W) -> (B, 8, H, W)``.

    Args:
        mask: Values from 0 to 1, ``(B, H, W)``.
    """
    return mask[:, None] * neighbours(mask[:, None].expand(-1, len(OFFSETS), -1, -1), OFFSETS)


def agreement(probabilities: Tensor, consistent: bool = False) -> Tensor:
    """Return the product of the mutual predictions of a pixel and each neighbour.

    Args:
        probabilities: Connectivity ``(B, 8, H, W)``; the result has the same shape.
        consistent: Whether channels of two steps look two steps away; False reproduces the
            published code (see :data:`PUBLISHED_OFFSETS`).
    """
    offsets = OFFSETS if consistent else PUBLISHED_OFFSETS
    return probabilities * neighbours(probabilities.flip(1), offsets)


def vote(probabilities: Tensor, consistent: bool = False) -> Tensor:
    """Return the probability of an animal, the largest :func:`agreement`: ``(B, 1, H, W)``.

    Isolated pixels of a mask vanish.
    """
    return agreement(probabilities, consistent).amax(dim=1, keepdim=True)


def pseudo_weight(progress: float) -> float:
    """Return the weight of pseudo labels, which grows from 6.7e-4 to 0.1 as training goes on.

    Args:
        progress: Fraction of training that is done.
    """
    return 0.1 * math.exp(-5 * (1 - progress) ** 2)


@MODELS.register_module()
class MutualConnectivityLoss(nn.Module):
    """Cross entropies of two decoders with the connectivity of the mask, and with each other.

    As in the published code, they are computed from probabilities in float32 with logarithms
    clamped at -100, so that gradients vanish for logits beyond about 28.

    Args:
        mask_value: Value of animals in masks. With 1, masks are binary; with 255, they are grey,
            and values in between are soft targets.
        progress: Counter that determines the weight of pseudo labels: ``"epoch"`` or ``"iter"``.
    """

    def __init__(self, mask_value: int = 1, progress: str = "epoch") -> None:
        super().__init__()
        if progress not in ("epoch", "iter"):
            raise ValueError(f"progress must be 'epoch' or 'iter', got {progress!r}")
        self.mask_value, self.progress = mask_value, progress

    def forward(
        self, image: Sequence[Tensor], gamma: Sequence[Tensor], masks: Tensor
    ) -> dict[str, Tensor]:
        """Return four losses for each scale j; those of pseudo labels are weighted.

        Args:
            image: Logits ``(B, 8, H / 2^j, W / 2^j)`` of the image's decoder.
            gamma: The same from the decoder of its gamma-corrected copy.
            masks: Integers ``(B, H, W)``.

        Raises:
            ValueError: If masks have another size or values outside of 0 to ``mask_value``.
            RuntimeError: If no runner has set the length of training.
        """
        self._check(masks, image[0])
        weight = pseudo_weight(self._progress())
        losses = connectivity_losses(image, gamma, masks.float() / self.mask_value)
        return {k: weight * v if "pseudo" in k else v for k, v in losses.items()}

    def _progress(self) -> float:
        hub = MessageHub.get_current_instance()
        total = hub.get_info(f"max_{self.progress}s")
        if not total:
            raise RuntimeError(
                "the weight of pseudo labels depends on the length of training, but MMEngine's"
                f" Runner has not set 'max_{self.progress}s'"
            )
        return hub.get_info(self.progress) / total

    def _check(self, masks: Tensor, logits: Tensor) -> None:
        if masks.shape[-2:] != logits.shape[-2:]:
            given, expected = tuple(masks.shape[-2:]), tuple(logits.shape[-2:])
            raise ValueError(f"masks must have the size of the images, {expected}, got {given}")
        low, high = masks.min().item(), masks.max().item()
        if low < 0 or high > self.mask_value:
            raise ValueError(
                f"values of masks must be 0 to {self.mask_value}, got {low} to {high}: load them"
                " with the transform LoadMask, or set mask_value"
            )


def connectivity_losses(
    image: Sequence[Tensor], gamma: Sequence[Tensor], masks: Tensor
) -> dict[str, Tensor]:
    """Return the unweighted terms of the loss; see :class:`MutualConnectivityLoss`.

    Args:
        image: Logits of the image's decoder, finest scale first.
        gamma: Logits of the decoder of its copy.
        masks: Values from 0 to 1, ``(B, H, W)``.
    """
    losses = {}
    for scale, logits in enumerate(zip(image, gamma)):
        target = connectivity(masks[:, :: 2**scale, :: 2**scale])
        predicted = [x.float().sigmoid() for x in logits]
        for name, own, other in zip(("image", "gamma"), predicted, predicted[::-1]):
            label = (other >= PSEUDO_THRESHOLD).float()
            # autocast rejects cross entropies of probabilities; these are float32
            with torch.autocast(own.device.type, enabled=False):
                losses[f"loss_conn.{name}.{scale}"] = F.binary_cross_entropy(own, target)
                losses[f"loss_pseudo.{name}.{scale}"] = F.binary_cross_entropy(own, label)
    return losses
