"""Mixed precision on CPUs; MMEngine's own wrapper requires a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmvssm.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Optimizer wrapper for bfloat16 on CPUs, whose float32 range needs no loss scaling.

    The arguments are those of :class:`mmengine.optim.OptimWrapper`.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter the base class's context under autocast."""
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield
