"""Channels-last memory format for images and convolution weights, as tensor cores use it."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmvssm.registry import HOOKS


def _order_images(module: nn.Module, args: tuple) -> tuple:
    """Convert the input images ``(B, C, H, W)`` of a module to channels-last memory format."""
    return tuple(
        arg.contiguous(memory_format=torch.channels_last)
        if isinstance(arg, Tensor) and arg.dim() == 4
        else arg
        for arg in args
    )


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Hook that keeps images and convolution weights in channels-last memory format.

    Shapes stay the same, and results do up to rounding. Our backbones compute in this format
    anyway; convolutions of necks and heads follow the format of their weights.

    Raises:
        ValueError: When the run starts, if the model has no ``backbone``.
    """

    def before_run(self, runner: Runner) -> None:
        """Convert the weights, and from then on the input images of the backbone."""
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        if not isinstance(getattr(model, "backbone", None), nn.Module):
            raise ValueError(
                f"ChannelsLastHook needs a model with a backbone, got {type(model).__name__}"
            )
        model.to(memory_format=torch.channels_last)
        model.backbone.register_forward_pre_hook(_order_images)
