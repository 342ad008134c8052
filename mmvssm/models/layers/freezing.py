"""FreezeMixin: frozen stages of a backbone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class FreezeMixin(nn.Module):
    """Mixin that freezes the first stages of a backbone, as mmpretrain's ``SwinTransformer`` does.

    Attributes:
        frozen_stages: Stages, counted from 0, up to which parameters are frozen and modules kept
            in eval mode; -1 for none.
        norm_eval: Whether batch norms are kept in eval mode while training.
    """

    frozen_stages: int
    norm_eval: bool

    @abstractmethod
    def frozen_parts(self) -> Iterator[nn.Module | nn.Parameter]:
        """Yield the parts to freeze: stem, embeddings, stages and their output norms."""

    def check_frozen_stages(self, num_stages: int) -> None:
        """Raise ValueError unless ``frozen_stages`` is -1 or the index of a stage."""
        if self.frozen_stages not in range(-1, num_stages):
            raise ValueError(
                f"frozen_stages must be from -1 to {num_stages - 1}, got {self.frozen_stages}"
            )

    def freeze(self) -> None:
        """Freeze the parts up to ``frozen_stages``."""
        if self.frozen_stages < 0:
            return
        for part in self.frozen_parts():
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                part.eval()

    def train(self, mode: bool = True) -> FreezeMixin:
        """Set the mode, but keep frozen parts, and norms with ``norm_eval``, in eval mode."""
        super().train(mode)
        self.freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
