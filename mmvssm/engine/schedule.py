"""Scaling of a recipe's schedules, hooks and learning rate to another number of epochs.

The scaled schedules always count iterations, because a warm-up of, say, 1.3 epochs cannot be
expressed in epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict
from mmengine.optim import CosineAnnealingLR as _CosineAnnealingLR

from mmvssm.registry import PARAM_SCHEDULERS

from .cli import type_name

#: A warm-up counted in iterations takes at most this fraction of training.
WARM_UP_SHARE = 0.1
#: The window of averaged weights is at most this fraction of training.
AVERAGE_SHARE = 0.05
#: A schedule that exceeds the training by this factor is reported as cut off.
CUT = 1.1

# Arguments of schedules that are points in time or numbers of steps.
_POINTS = ("begin", "end", "T_max", "total_steps", "step_size")
_LISTS = ("milestones", "periods")
_RATES = ("eta_min", "eta_max")
_KNOWN = (
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineRestartLR",
    "ExponentialLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "PolyLR",
    "StepLR",
)
_WARM_UPS = ("ConstantLR", "LinearLR")
# Arguments of hooks that count epochs.
_EPOCHS_OF_HOOKS = {
    "PipelineSwitchHook": "switch_epoch",
    "YOLOXModeSwitchHook": "num_last_epochs",
    "EMAHook": "begin_epoch",
    "MESAHook": "begin",
}


@PARAM_SCHEDULERS.register_module()
class CosineAnnealingLR(_CosineAnnealingLR):
    """MMEngine's schedule, with a helpful error if training ends before the schedule begins.

    The arguments are those of :class:`mmengine.optim.CosineAnnealingLR`.

    Raises:
        ValueError: If ``begin`` is not before ``end``, which is by default the end of training.
    """

    def __init__(
        self,
        optimizer: Any,
        *args: Any,
        begin: int = 0,
        end: float = math.inf,
        by_epoch: bool = True,
        **kwargs: Any,
    ) -> None:
        _require_room(begin, end, "epoch" if by_epoch else "iteration")
        super().__init__(optimizer, *args, begin=begin, end=end, by_epoch=by_epoch, **kwargs)

    @classmethod
    def build_iter_from_epoch(
        cls, *args: Any, begin: float = 0, end: float = math.inf, **kwargs: Any
    ) -> CosineAnnealingLR:
        """Build a schedule that counts iterations from one that counts epochs."""
        _require_room(begin, end, "epoch")
        return super().build_iter_from_epoch(*args, begin=begin, end=end, **kwargs)


def _require_room(begin: float, end: float, unit: str) -> None:
    if begin >= end:
        raise ValueError(
            f"the warm-up ends at {unit} {begin}, but training ends at {unit} {end}: lower"
            " param_scheduler.0.end (the warm-up) and param_scheduler.1.begin (the cosine) as well,"
            f" below {end}, or let tools/train.py --epochs N scale them"
        )


class Training(NamedTuple):
    """The length of a training run: epochs, and iterations per epoch."""

    epochs: int
    epoch_length: int

    @property
    def iterations(self) -> int:
        """Total number of iterations."""
        return self.epochs * self.epoch_length


def check_length(cfg: Config) -> str | None:
    """Compare the schedules with the length of training.

    Returns:
        A sentence if training ends long before a schedule, for instance if only the epochs of a
        recipe were changed; else None.

    Raises:
        ValueError: If a schedule begins after the end of training, which MMEngine rejects; the
            message names its keys.
    """
    loop, schedules = cfg.get("train_cfg") or {}, cfg.get("param_scheduler") or []
    cut = None
    for number, schedule in enumerate(
        schedules if isinstance(schedules, (list, tuple)) else [schedules]
    ):
        unit = "epochs" if schedule.get("by_epoch", True) else "iters"
        total = loop.get(f"max_{unit}")
        if total is None:
            continue
        place = f"param_scheduler.{number} ({type_name(schedule)})"
        end, begin = schedule.get("end", total), schedule.get("begin", 0)
        if begin >= end:
            raise ValueError(
                f"{place} begins at {begin}, but training ends at {total} (train_cfg.max_{unit}): "
                "lower its begin and the end of the warm-up before it, or scale all schedules with "
                "--epochs N"
            )
        if end > CUT * total:
            cut = (
                f"{place} ends at {end}, but training ends at {total} (train_cfg.max_{unit}): the "
                "learning-rate schedule is cut off; --epochs N scales all schedules."
            )
    return cut


def set_epochs(
    cfg: Config, epochs: int, images: int, processes: int = 1, rate: float | None = None
) -> Config:
    """Return the config for training of ``epochs`` epochs.

    * The loop counts epochs, even if the recipe's counts iterations. In total it validates and
      saves as often as the recipe's, but at most once per epoch.
    * Schedules keep their fraction of training. If a recipe counts epochs, a warm-up that counts
      iterations keeps their number, up to a tenth of training. A warm-up that would be shorter than
      two iterations is dropped.
    * The learning rate is multiplied by actual batch size / ``auto_scale_lr.base_batch_size``,
      which is then set to the actual batch size.
    * A batch larger than the data of a process is reduced to them. A last batch of a single image,
      on which batch norms fail, is dropped.
    * The window of averaged weights (``EMAHook``) is at most a twentieth of training.

    Args:
        cfg: A recipe; it is not changed.
        epochs: Number of epochs.
        images: Number of training images.
        processes: Number of training processes.
        rate: Learning rate; None for the recipe's, scaled by the batch size.

    Raises:
        ValueError: If a number is not positive, or the recipe has a loop or a schedule that cannot
            be scaled.
    """
    for name, value in (("epochs", epochs), ("images", images), ("processes", processes)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    cfg = deepcopy(cfg)
    loop = cfg.train_cfg
    kind = type_name(loop) or ("EpochBasedTrainLoop" if loop.get("by_epoch") else "")
    if kind not in ("EpochBasedTrainLoop", "IterBasedTrainLoop"):
        raise ValueError(
            "train_cfg.type must be EpochBasedTrainLoop or IterBasedTrainLoop to set the number of"
            f" epochs, got {kind or loop.get('type')!r}"
        )
    in_epochs = kind == "EpochBasedTrainLoop"
    length = loop.max_epochs if in_epochs else loop.max_iters

    training = Training(epochs, _set_batches(cfg, images, processes))
    factor = _scale_rate(cfg, processes, rate)
    if cfg.get("param_scheduler"):
        schedules = cfg.param_scheduler
        scaled = [
            _scale_schedule(schedule, f"param_scheduler.{number}", in_epochs, length, training)
            for number, schedule in enumerate(
                schedules if isinstance(schedules, (list, tuple)) else [schedules]
            )
        ]
        cfg.param_scheduler = [schedule for schedule in scaled if schedule is not None]
        for schedule in cfg.param_scheduler:
            for name in _RATES:
                if schedule.get(name) is not None:
                    schedule[name] *= factor
    _set_loop(cfg, length, in_epochs, training)
    for hook in cfg.get("custom_hooks") or []:
        _scale_hook(hook, length if in_epochs else None, training)
    return cfg


def _set_batches(cfg: Config, images: int, processes: int) -> int:
    """Fit batch size and sampler to the data; return the iterations per epoch."""
    loader = cfg.train_dataloader
    if "Infinite" in type_name(loader.get("sampler") or {}):
        loader.sampler = dict(type="DefaultSampler", shuffle=loader.sampler.get("shuffle", True))
    share = math.ceil(images / processes)
    loader.batch_size = min(loader.batch_size, share)
    if loader.batch_size > 1 and share % loader.batch_size == 1:
        loader.drop_last = True
    count = share / loader.batch_size
    return math.floor(count) if loader.get("drop_last") else math.ceil(count)


def _scale_rate(cfg: Config, processes: int, rate: float | None) -> float:
    """Set the learning rate, or scale it by the batch size; return the factor."""
    base = (cfg.get("auto_scale_lr") or {}).get("base_batch_size")
    batch = cfg.train_dataloader.batch_size * processes
    cfg.auto_scale_lr = dict(base_batch_size=batch, enable=False)
    optimizer = cfg.optim_wrapper.optimizer
    factor = rate / optimizer.lr if rate else batch / base if base else 1.0
    optimizer.lr *= factor
    return factor


def _scale_schedule(
    schedule: ConfigDict, place: str, in_epochs: bool, length: int, training: Training
) -> ConfigDict | None:
    """Return a schedule in iterations of the new training, or None if it would be too short."""
    kind = type_name(schedule)
    if kind not in _KNOWN:
        raise ValueError(
            f"{place} ({kind}) cannot be scaled to another number of epochs: use one of "
            f"{', '.join(_KNOWN)}, or leave --epochs out"
        )
    by_epoch = schedule.get("by_epoch", True)
    total = training.iterations
    point: Callable[[float], int]
    if by_epoch == in_epochs:

        def point(value: float) -> int:
            return round(value * total / length)

    elif not by_epoch and kind in _WARM_UPS and schedule.get("end"):

        def point(value: float) -> int:
            return min(round(value), math.floor(total * WARM_UP_SHARE))

    else:
        raise ValueError(
            f"{place} ({kind}) counts {'epochs' if by_epoch else 'iterations'}, but train_cfg "
            f"{'epochs' if in_epochs else 'iterations'}: its fraction of training is not known"
        )
    scaled = deepcopy(schedule)
    stepwise = by_epoch and not scaled.pop("convert_to_iter_based", False)
    warms_up = kind in _WARM_UPS
    # stepwise, the last factor is reached one step before the end
    early = int(warms_up and stepwise and "end" in scaled)
    scaled.setdefault("begin", 0)
    scaled.setdefault("end", length)
    for name in _POINTS:
        if scaled.get(name) is not None:
            scaled[name] = point(scaled[name])
    if early:
        scaled.end = point(schedule.end - early) + early
    for name in _LISTS:
        if name in scaled:
            scaled[name] = [min(max(point(value), 1), total) for value in scaled[name]]
    if kind == "StepLR":
        scaled.step_size = max(scaled.step_size, 1)
    if kind == "ExponentialLR":
        scaled.gamma **= length / total
    scaled.by_epoch = False
    # a warm-up of one iteration would never leave its first factor
    return scaled if scaled.end - scaled.begin > warms_up else None


def _set_loop(cfg: Config, length: int, in_epochs: bool, training: Training) -> None:
    """Make loop, checkpoints and log count epochs."""

    def interval(steps: int) -> int:
        return min(max(round(steps * training.epochs / length), 1), training.epochs)

    old = cfg.train_cfg
    cfg.train_cfg = dict(
        type="EpochBasedTrainLoop",
        max_epochs=training.epochs,
        val_interval=interval(old.get("val_interval", 1 if in_epochs else 1000)),
    )
    if in_epochs and old.get("dynamic_intervals"):
        cfg.train_cfg.dynamic_intervals = [
            (interval(begin), interval(steps)) for begin, steps in old.dynamic_intervals
        ]
    hooks = cfg.setdefault("default_hooks", {})
    checkpoint = hooks.setdefault("checkpoint", {})
    if checkpoint is not None:
        checkpoint.setdefault("type", "CheckpointHook")
        if checkpoint.get("by_epoch", True) == in_epochs and checkpoint.get("interval", 0) > 0:
            checkpoint.interval = interval(checkpoint.interval)
        else:
            checkpoint.interval = cfg.train_cfg.val_interval
        checkpoint.by_epoch = True
        checkpoint.setdefault("max_keep_ckpts", 3)
    if hooks.get("logger") is not None:
        hooks.logger.pop("log_metric_by_epoch", None)
    cfg.log_processor = dict(cfg.get("log_processor") or {}, by_epoch=True)


def _scale_hook(hook: ConfigDict, epochs: int | None, training: Training) -> None:
    """Scale the counts of a hook; ``epochs`` is the recipe's length, None if not in epochs."""
    kind = type_name(hook)
    name = _EPOCHS_OF_HOOKS.get(kind)
    steps = [(hook, name)] if hook.get(name) else []
    if kind == "SwitchRecipeHook":
        steps += [(action, "action_epoch") for action in hook.schedule]
    for owner, name in steps:
        if epochs is not None:
            owner[name] = max(round(owner[name] * training.epochs / epochs), 1)
    if kind == "EMAHook":
        span = max(training.iterations * AVERAGE_SHARE, 2.0)
        hook.interval = max(min(hook.get("interval", 1), int(span / 2)), 1)
        hook.momentum = min(max(hook.get("momentum", 0.0002), hook.interval / span), 0.5)
        if hook.get("begin_iter"):
            hook.begin_iter = min(hook.begin_iter, int(training.iterations * WARM_UP_SHARE))
