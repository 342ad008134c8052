"""Images and convolution weights in the memory order of tensor cores."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmvssm.registry import HOOKS


def _order_images(module: nn.Module, args: tuple) -> tuple:
    """Reorders the images ``(B, C, H, W)`` that a module is called with."""
    return tuple(
        arg.contiguous(memory_format=torch.channels_last)
        if isinstance(arg, Tensor) and arg.dim() == 4
        else arg
        for arg in args
    )


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keeps images and the weights of all convolutions in the memory order (B, H, W, C).

    The shapes, and up to rounding the results, stay the same. Our backbones compute in this order
    anyway; convolutions of necks and heads follow the order of their weights.

    Raises:
        ValueError: When the run starts, if the model has no ``backbone``.
    """

    def before_run(self, runner: Runner) -> None:
        """Reorder the weights, and from now on the images in front of the backbone."""
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        if not isinstance(getattr(model, "backbone", None), nn.Module):
            raise ValueError(
                f"ChannelsLastHook needs a model with a backbone, got {type(model).__name__}"
            )
        model.to(memory_format=torch.channels_last)
        model.backbone.register_forward_pre_hook(_order_images)
