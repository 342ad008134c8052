"""Training with sharded weights (FSDP), with fixes to MMEngine's strategy.

MMEngine's own strategy builds the optimizer from the sharded model, in which every parameter is a
one-dimensional shard; it clips each process's gradients by the norm of its own shards only; and it
cannot save and load the optimizer's state with current versions of torch.
"""

from __future__ import annotations

import torch
from mmengine._strategy import FSDPStrategy as _FSDPStrategy
from mmengine.optim import BaseOptimWrapper, build_optim_wrapper
from torch import Tensor, nn
from torch.distributed import all_gather_object
from torch.distributed.fsdp import FullyShardedDataParallel

from mmvssm.models.layers.block import CheckpointedBlock
from mmvssm.registry import FUNCTIONS, STRATEGIES


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Decide whether FSDP wraps a module: every block of our backbones is a unit of its own.

    Args:
        module: The module.
        recurse: Whether torch asks whether to visit the module's children, which it always should.
        nonwrapped_numel: Number of the module's parameters that are in no unit yet; ignored.
    """
    return recurse or isinstance(module, CheckpointedBlock)


@STRATEGIES.register_module()
class FSDPStrategy(_FSDPStrategy):
    """MMEngine's strategy with exact weight decay, gradient clipping and resuming.

    The arguments are those of :class:`mmengine._strategy.FSDPStrategy`. The model wrapper must keep
    its default ``use_orig_params=True``.
    """

    def prepare(self, model: nn.Module | dict, *, optim_wrapper=None, **kwargs) -> tuple:
        """Prepare as MMEngine does; keep the config to build the optimizer before sharding."""
        self._optim_wrapper_cfg = optim_wrapper
        return super().prepare(model, optim_wrapper=optim_wrapper, **kwargs)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if isinstance(self._optim_wrapper_cfg, dict):
            cfg = dict(self._optim_wrapper_cfg)
            cfg.setdefault("type", "OptimWrapper")
            if cfg["type"] == "AmpOptimWrapper":
                cfg.setdefault("use_fsdp", True)
            self._strides = {
                name: parameter.stride()
                for name, parameter in model.named_parameters()
                if not parameter.is_contiguous()
            }
            self._whole = build_optim_wrapper(model, cfg)
            names = {parameter: name for name, parameter in model.named_parameters()}
            self._group_names = [
                [names[parameter] for parameter in group["params"]]
                for group in self._whole.optimizer.param_groups
            ]
        return super()._wrap_model(model)

    def build_optim_wrapper(
        self, optim_wrapper: BaseOptimWrapper | dict, model: nn.Module | None = None
    ) -> BaseOptimWrapper:
        """Return the optimizer of the full model, with each parameter replaced by its shard."""
        if not isinstance(optim_wrapper, dict):
            return super().build_optim_wrapper(optim_wrapper, model)
        pieces = {
            name.replace("_fsdp_wrapped_module.", ""): parameter
            for name, parameter in model.named_parameters()
        }
        wrapper = self._whole
        for group, names in zip(wrapper.optimizer.param_groups, self._group_names):
            group["params"] = [pieces[name] for name in names]
        if getattr(wrapper, "clip_func", None) is torch.nn.utils.clip_grad_norm_:
            wrapper.clip_func = lambda parameters, **options: model.clip_grad_norm_(**options)
        return wrapper

    def optim_state_dict(self) -> dict:
        """Return the optimizer's state for the full model by parameter name, on rank 0 only.

        Torch gathers all kinds of state in one buffer and returns views of it on the CPU, so each
        kind is requested separately.
        """
        own = self.optim_wrapper.state_dict()
        kinds = [None] * self.world_size
        all_gather_object(kinds, {kind for state in own["state"].values() for kind in state})
        full: dict = {}
        for kind in sorted(set.union(*kinds)):
            states = {
                key: {kind: state[kind]} for key, state in own["state"].items() if kind in state
            }
            part = FullyShardedDataParallel.optim_state_dict(
                self.model,
                self.optim_wrapper.optimizer,
                optim_state_dict=dict(state=states, param_groups=own["param_groups"]),
            )
            if not full:
                full = {**own, **part, "state": {}} if part else {}
            for name, state in part.get("state", {}).items():
                full["state"].setdefault(name, {}).update(state)
        return full

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the optimizer's state of a full model."""
        state = {name: dict(kinds) for name, kinds in state_dict["state"].items()}
        for name in self._strides.keys() & state.keys():
            state[name] = {
                kind: self._in_memory_order(name, value) for kind, value in state[name].items()
            }
        shards = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model,
            optim=self.optim_wrapper.optimizer,
            optim_state_dict=dict(state=state, param_groups=state_dict["param_groups"]),
        )
        self.optim_wrapper.load_state_dict({**state_dict, **shards})

    def _in_memory_order(self, name: str, value: Tensor) -> Tensor:
        """Return state in the memory order in which torch shards a non-contiguous parameter."""
        if value.dim() == 0:
            return value
        ordered = torch.empty_strided(value.shape, self._strides[name], dtype=value.dtype)
        return ordered.copy_(value).as_strided((value.numel(),), (1,)).view(value.shape)
