"""Criss-cross connectivity: which neighbours of a pixel belong to its animal, and its losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmseg.registry import MODELS
from torch import Tensor, nn

#: Row and column of the neighbour of each channel; channel 7 - k is the opposite of channel k.
OFFSETS = ((-2, 0), (-1, 0), (0, -2), (0, -1), (0, 1), (0, 2), (1, 0), (2, 0))
#: Where the published code looks for the opposite channel: one step, for two steps as well, and
#: for two of them the other way.
PUBLISHED_OFFSETS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 1), (0, 1), (1, 0), (1, 0))
#: Probability from which the other decoder's prediction counts as a label.
PSEUDO_THRESHOLD = 0.5001


def neighbours(x: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """Return the value of each pixel's neighbour, zero outside.

    Args:
        x: Maps ``(B, K, H, W)``.
        offsets: Row and column of the neighbour for each of K channels.
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
        mask: Values 0 to 1.
    """
    return mask[:, None] * neighbours(mask[:, None].expand(-1, len(OFFSETS), -1, -1), OFFSETS)


def agreement(probabilities: Tensor, consistent: bool = False) -> Tensor:
    """Return the product of what a pixel and each neighbour predict of the other.

    Args:
        probabilities: Connectivity ``(B, 8, H, W)``, the shape of the result.
        consistent: Whether channels of two steps look two steps away; with False they look where
            the published code does, see :data:`PUBLISHED_OFFSETS`.
    """
    offsets = OFFSETS if consistent else PUBLISHED_OFFSETS
    return probabilities * neighbours(probabilities.flip(1), offsets)


def vote(probabilities: Tensor, consistent: bool = False) -> Tensor:
    """Return the probability of animal, the largest :func:`agreement`: ``(B, 1, H, W)``.

    Pixels of a mask without any neighbour in it vanish.
    """
    return agreement(probabilities, consistent).amax(dim=1, keepdim=True)


def pseudo_weight(progress: float) -> float:
    """Return the weight of pseudo labels, which grows from 6.7e-4 to 0.1 as training goes on.

    Args:
        progress: Share of the training that is done.
    """
    return 0.1 * math.exp(-5 * (1 - progress) ** 2)


@MODELS.register_module()
class MutualConnectivityLoss(nn.Module):
    """Cross entropies of two decoders with the connectivity of the mask, and with one another.

    All are of probabilities in float32 with logarithms of at least -100, as the published code has
    them, so that their gradients vanish for logits beyond about 28.

    Args:
        mask_value: Value of animals in masks. With 1 masks are binary; with 255 they are grey, and
            values in between are targets in between.
        progress: Of what the weight of pseudo labels depends: ``"epoch"`` or ``"iter"``.
    """

    def __init__(self, mask_value: int = 1, progress: str = "epoch") -> None:
        super().__init__()
        if progress not in ("epoch", "iter"):
            raise ValueError(f"progress must be 'epoch' or 'iter', got {progress!r}")
        self.mask_value, self.progress = mask_value, progress

    def forward(
        self, image: Sequence[Tensor], gamma: Sequence[Tensor], masks: Tensor
    ) -> dict[str, Tensor]:
        """Return four losses for each scale j, pseudo labels with their weight.

        Args:
            image: Logits ``(B, 8, H / 2^j, W / 2^j)`` of the image's decoder.
            gamma: The same of the decoder of its gamma-corrected copy.
            masks: Integers ``(B, H, W)``.

        Raises:
            ValueError: If masks have another size or values outside of 0 to ``mask_value``.
            RuntimeError: If no Runner has told how long the training is.
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
                "the weight of pseudo labels depends on the length of the training, of which"
                f" MMEngine's Runner has told no 'max_{self.progress}s'"
            )
        return hub.get_info(self.progress) / total

    def _check(self, masks: Tensor, logits: Tensor) -> None:
        if masks.shape[-2:] != logits.shape[-2:]:
            given, expected = tuple(masks.shape[-2:]), tuple(logits.shape[-2:])
            raise ValueError(f"masks must have the size of the images, {expected}, got {given}")
        low, high = masks.min().item(), masks.max().item()
        if low < 0 or high > self.mask_value:
            raise ValueError(
                f"values of masks must be 0 to {self.mask_value}, got {low} to {high}: load them by"
                " the transform LoadMask, or set mask_value"
            )


def connectivity_losses(
    image: Sequence[Tensor], gamma: Sequence[Tensor], masks: Tensor
) -> dict[str, Tensor]:
    """Return the terms of the loss without weights, see :class:`MutualConnectivityLoss`.

    Args:
        image: Logits of the image's decoder, finest first.
        gamma: Logits of the decoder of its copy.
        masks: Values 0 to 1, ``(B, H, W)``.
    """
    losses = {}
    for scale, logits in enumerate(zip(image, gamma)):
        target = connectivity(masks[:, :: 2**scale, :: 2**scale])
        predicted = [x.float().sigmoid() for x in logits]
        for name, own, other in zip(("image", "gamma"), predicted, predicted[::-1]):
            label = (other >= PSEUDO_THRESHOLD).float()
            # autocast refuses cross entropies of probabilities; these are float32
            with torch.autocast(own.device.type, enabled=False):
                losses[f"loss_conn.{name}.{scale}"] = F.binary_cross_entropy(own, target)
                losses[f"loss_pseudo.{name}.{scale}"] = F.binary_cross_entropy(own, label)
    return losses
