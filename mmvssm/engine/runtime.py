"""Checks and settings for the training options in ``configs/options``."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

import torch
from mmengine.config import Config
from mmengine.device import get_device

from mmvssm.ops.tracers import TRACES_ROUTES

from .cli import fail, type_name

_PLAIN_GROUPS = dict(type="mmvssm.PlainGroupsHook")
_OF_MIXED_PRECISION = ("loss_scale", "dtype", "use_fsdp")


def require_packages(cfg: Config) -> None:
    """Check that TensorBoard and DeepSpeed are installed if the config needs them."""
    backends = {
        type_name(backend) for backend in (cfg.get("visualizer") or {}).get("vis_backends", ())
    }
    if "TensorboardVisBackend" in backends and not (
        find_spec("tensorboard") or find_spec("tensorboardX")
    ):
        fail("TensorboardVisBackend needs TensorBoard: pip install tensorboard")
    if type_name(cfg.get("strategy") or {}) == "DeepSpeedStrategy" and not find_spec("deepspeed"):
        fail("DeepSpeedStrategy needs DeepSpeed: pip install deepspeed")


def set_up_optimization(cfg: Config, args: argparse.Namespace) -> None:
    """Check that sharding can run here, set up DeepSpeed, and replace float16 on CPUs."""
    if type_name(cfg.optim_wrapper) == "AmpOptimWrapper" and get_device() == "cpu":
        if cfg.optim_wrapper.get("dtype") in ("bfloat16", torch.bfloat16):
            print("Mixed precision in bfloat16 on the CPU.", flush=True)
            cfg.optim_wrapper.type = "mmvssm.CPUAmpOptimWrapper"
        else:
            print("Mixed precision needs a GPU: this run computes in float32.", flush=True)
            cfg.optim_wrapper.type = "OptimWrapper"
        for name in _OF_MIXED_PRECISION:
            cfg.optim_wrapper.pop(name, None)
    if cfg.get("compile"):
        if not TRACES_ROUTES:
            fail(f"compile needs torch 2.7 or newer, this is {torch.__version__}")
        hooks = [hook for hook in cfg.get("custom_hooks") or [] if hook != _PLAIN_GROUPS]
        cfg.custom_hooks = [*hooks, _PLAIN_GROUPS]  # once, also where a run's own config is read
    strategy = type_name(cfg.get("strategy") or {})
    if strategy in ("FSDPStrategy", "DeepSpeedStrategy"):
        if strategy == "FSDPStrategy" and args.launcher == "none":
            fail("FSDPStrategy needs several processes: start with tools/dist_train.sh")
        if any(type_name(hook).endswith("EMAHook") for hook in cfg.get("custom_hooks") or []):
            fail(
                f"{strategy} cannot average weights (EMAHook), because no process holds all of "
                "them; to train without averaging: --cfg-options custom_hooks=[]"
            )
        if strategy == "FSDPStrategy" and not hasattr(torch.compiler, "set_stance"):
            # with 2.4 a resumed training ends with other weights; 2.1 does not shard on a CPU
            fail(f"FSDPStrategy needs torch 2.6 or newer, this is {torch.__version__}")
    if strategy == "DeepSpeedStrategy":
        set_up_deepspeed(cfg)


def set_up_deepspeed(cfg: Config) -> None:
    """Replace the config's optimizer wrapper by DeepSpeed's, which clips and casts by itself."""
    wrapper = cfg.optim_wrapper
    clipping = wrapper.pop("clip_grad", None)
    if clipping is not None:
        cfg.strategy.setdefault("gradient_clipping", clipping["max_norm"])
    if "accumulative_counts" in wrapper:
        cfg.strategy.setdefault("gradient_accumulation_steps", wrapper.pop("accumulative_counts"))
    for name in _OF_MIXED_PRECISION:
        wrapper.pop(name, None)
    wrapper.type = "DeepSpeedOptimWrapper"
