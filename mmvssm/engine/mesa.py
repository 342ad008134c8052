"""MESA: a loss that pulls a classifier towards the average of its own weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmvssm.registry import HOOKS

#: Factor by which the published code multiplies the weight.
FACTOR = 50


@HOOKS.register_module()
class MESAHook(Hook):
    """Hook that adds the divergence from the averaged model's prediction to a classifier's loss.

    The averaged model is that of an ``EMAHook``, which must be among the hooks. It gets the same
    batch, including mixed images, in eval mode. The loss is logged as ``loss_mesa``.

    `Sharpness-Aware Training for Free <https://arxiv.org/abs/2205.14083>`_

    Args:
        weight: Weight of the loss; the divergence is multiplied by 50 times this weight.
        begin: First epoch with the loss, counted from 0.
        temperature: Divisor of the logits.

    Raises:
        ValueError: If an argument is out of range or, when training starts, there is no
            ``EMAHook``.
    """

    def __init__(self, weight: float, begin: int, temperature: float = 3.0) -> None:
        if weight < 0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        if begin < 0:
            raise ValueError(f"begin must be an epoch, at least 0, got {begin}")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.weight, self.begin, self.temperature = weight, begin, temperature
        self._is_on = False
        self._logits: Tensor | None = None
        self._handles: list[RemovableHandle] = []

    def before_train(self, runner: Runner) -> None:
        """Register hooks on the model's logits and losses."""
        averages = [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)]
        if not averages:
            raise ValueError("MESAHook needs an EMAHook among custom_hooks, got none")
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._average = averages[0].eval()
        self._handles = [
            model.head.register_forward_hook(self._keep_logits),
            model.register_forward_hook(self._add_loss, with_kwargs=True),
        ]

    def before_train_epoch(self, runner: Runner) -> None:
        """Enable the loss from epoch ``begin`` on."""
        self._is_on = runner.epoch >= self.begin

    def after_train(self, runner: Runner) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()

    def _keep_logits(self, head: nn.Module, inputs: Any, logits: Tensor) -> None:
        if self._is_on:
            self._logits = logits

    def _add_loss(self, model: nn.Module, args: tuple, kwargs: dict, losses: Any) -> Any:
        """Add the loss to those of a training step; see :class:`MESAHook`."""
        if not self._is_on or kwargs.get("mode") != "loss":
            return losses
        # released, so that the graph does not outlive the step
        logits, self._logits = self._logits, None
        with torch.no_grad():
            target = self._average(kwargs["inputs"], mode="tensor")
        divergence = F.kl_div(
            F.log_softmax(logits.float() / self.temperature, dim=1),
            F.softmax(target.float() / self.temperature, dim=1),
            reduction="batchmean",
        )
        return {**losses, "loss_mesa": FACTOR * self.weight * divergence}
