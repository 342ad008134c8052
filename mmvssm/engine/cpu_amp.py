"""Mixed precision on CPUs, for which MMEngine's own wrapper asks for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmvssm.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Trains in bfloat16 on CPUs; its range is float32's, so that losses need no scaling.

    The arguments are those of :class:`mmengine.optim.OptimWrapper`.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """As there, under autocast."""
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield
