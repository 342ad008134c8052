"""Layer-wise learning rates for fine-tuning plain backbones."""

from __future__ import annotations

import re

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmvssm.registry import OPTIM_WRAPPER_CONSTRUCTORS

# Prefixes that sharding, compilation and activation checkpointing add to parameter names.
_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Constructor that lowers the learning rate of a backbone from its last layer to its first.

    The learning rate of a parameter at depth ``d`` of ``n`` is multiplied by
    ``layer_decay_rate ** (n - 1 - d)``. Patch and position embeddings have depth 0, then the layers
    follow; output norms and the rest of the model have depth ``n - 1``. Depths come from the
    backbone's ``get_layer_depth(name, prefix)``, which mmpretrain's backbones have as well. Unlike
    the constructors of mmpretrain and mmseg, this one supports the models of all libraries and all
    rules of MMEngine::

        optim_wrapper = dict(
            constructor="mmvssm.LayerDecayOptimWrapperConstructor",
            paramwise_cfg=dict(
                layer_decay_rate=0.8, norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0
            ),
        )

    `BEiT <https://arxiv.org/abs/2106.08254>`_ (layer-wise decay)

    Args:
        optim_wrapper_cfg: As in :class:`mmengine.optim.DefaultOptimWrapperConstructor`.
        paramwise_cfg: As in the base class, with ``layer_decay_rate`` in (0, 1].

    Raises:
        ValueError: If ``layer_decay_rate`` is missing or out of range.
        TypeError: When called, if the model has no ``backbone`` with ``get_layer_depth``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get("layer_decay_rate")
        if rate is None or not 0 < rate <= 1:
            raise ValueError(
                f"paramwise_cfg must hold layer_decay_rate, above 0 and at most 1, got {rate}"
            )
        self.layer_decay_rate = rate

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", **kwargs) -> None:
        """Add a group for each parameter, as MMEngine does, and scale its learning rate.

        Groups also get ``lr_scale``, the factor, and ``param_name``.

        Args:
            params: Groups, to which those of ``module`` are added.
            module: The model, or a part of it.
            prefix: Name of the part; empty for the model.
            **kwargs: Further arguments of MMEngine's recursion.
        """
        super().add_params(params, module, prefix, **kwargs)
        if prefix:  # called recursively for a part
            return
        backbone = getattr(module, "backbone", None)
        if not hasattr(backbone, "get_layer_depth"):
            raise TypeError(
                "layer-wise decay needs a model whose backbone has get_layer_depth, got"
                f" {type(module).__name__} with backbone {type(backbone).__name__}"
            )
        names = {
            parameter: _WRAPPERS.sub("", name) for name, parameter in module.named_parameters()
        }
        for group in params:
            (parameter,) = group["params"]
            name = names[parameter]
            depth, num_depths = backbone.get_layer_depth(name, "backbone.")
            scale = self.layer_decay_rate ** (num_depths - 1 - depth)
            group.update(lr=group.get("lr", self.base_lr) * scale, lr_scale=scale, param_name=name)
