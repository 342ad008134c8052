"""Comparison of models by latency, throughput and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from .networks import channels_of, run_network
from .timing import measure, peak_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODES = ("inference", "training")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compare(
    models: Mapping[str, nn.Module],
    shape: Sequence[int] = (224, 224),
    batch_sizes: Sequence[int] = (1,),
    modes: Sequence[str] = ("inference",),
    precisions: Sequence[str] = ("fp32",),
    device: str = "cpu",
    repetitions: int = 10,
    warmups: int = 3,
    budget: float = 20.0,
    progress: Callable[[], object] = lambda: None,
    compiled: bool = False,
) -> list[dict[str, Any]]:
    """Measure models in turn, under each setting, on random images.

    A run is the network from the image to the outputs of its heads (see
    :func:`mmvssm.analysis.run_network`), in training with the backward pass. It does not include
    reading images, decoding boxes, losses of detectors and the optimizer step.

    Args:
        models: Models by name; they are moved to ``device``, and their mode changes.
        shape: Size ``(H, W)`` of the images.
        batch_sizes: Batch sizes.
        modes: Modes, of :data:`MODES`.
        precisions: Precisions, of :data:`PRECISIONS`; all but ``'fp32'`` use autocast.
        device: ``'cpu'`` or ``'cuda'``. Every run ends with a synchronisation.
        repetitions: Timed runs of each model; models alternate from run to run.
        warmups: Runs before the timed ones.
        budget: Seconds after which a slow model is not run any more (but at least three times).
        progress: Called after each round of runs of a setting.
        compiled: Whether each model is also measured under ``torch.compile``, as its name followed
            by ``' compiled'``. It is compiled separately for each setting, with static sizes.

    Returns:
        A dict for each setting and model, with ``model``, ``mode``, ``precision``, ``batch_size``,
        ``shape``, ``median_ms``, ``min_ms``, ``repetitions``, ``images_per_s``, ``ratio`` (time
        relative to the first model) and ``peak_mib`` (weights plus the peak of a run); for compiled
        models also ``compile_s``, the seconds of the first run. If a model runs out of GPU memory,
        the dict has ``error`` instead of numbers.

    Raises:
        ValueError: If a setting is not one of its choices, or a batch norm gets a single value.
    """
    for name, values, known in (
        ("modes", modes, MODES),
        ("precisions", precisions, tuple(PRECISIONS)),
    ):
        if unknown := set(values) - set(known):
            raise ValueError(f"{name} must be of {', '.join(known)}, got {', '.join(unknown)}")
    if min(*shape, *batch_sizes, repetitions) < 1:
        raise ValueError(
            "sizes, batches and repetitions must be at least 1, got"
            f" {tuple(shape)}, {tuple(batch_sizes)}, {repetitions}"
        )
    # a single process, so batch norms have nothing to synchronise with
    models = {name: revert_sync_batchnorm(model).to(device) for name, model in models.items()}
    results = []
    for mode, precision, batch_size in product(modes, precisions, batch_sizes):
        networks = _networks(models, compiled)
        runs, failed, firsts = {}, {}, {}
        for name, (model, network) in networks.items():
            model.train(mode == "training")
            images = torch.randn(batch_size, channels_of(model), *shape, device=device)
            step = _train if mode == "training" else _infer
            run = partial(step, model, network, images, PRECISIONS[precision])
            try:
                start = time.perf_counter()
                run()
                if name not in models:
                    firsts[name] = dict(compile_s=time.perf_counter() - start)
                peak = peak_memory(run, device) + _weight_bytes(model)
            except torch.cuda.OutOfMemoryError:
                failed[name] = "out of memory"
                model.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
            else:
                runs[name] = run, peak / 2**20
        functions = {name: run for name, (run, _) in runs.items()}
        times = measure(functions, device, repetitions, warmups, budget, progress)
        setting = dict(mode=mode, precision=precision, batch_size=batch_size, shape=tuple(shape))
        first = next(iter(times.values()), {})
        for name in networks:
            entry: dict[str, Any] = dict(model=name, **setting)
            if name in failed:
                entry["error"] = failed[name]
            else:
                entry.update(times[name], peak_mib=runs[name][1], **firsts.get(name, {}))
                entry["images_per_s"] = 1e3 * batch_size / entry["median_ms"]
                entry["ratio"] = entry["median_ms"] / first["median_ms"]
            results.append(entry)
    return results


def _weight_bytes(model: nn.Module) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _autocast(images: Tensor, dtype: torch.dtype) -> Any:
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(images.device.type, dtype)


def _networks(
    models: Mapping[str, nn.Module], compiled: bool
) -> dict[str, tuple[nn.Module, Callable[[nn.Module, Tensor], list[Tensor]]]]:
    """Return each model and the function that runs it, by name."""
    if not compiled:
        return {name: (model, run_network) for name, model in models.items()}
    torch.compiler.reset()
    found: dict[str, tuple[nn.Module, Callable[[nn.Module, Tensor], list[Tensor]]]] = {}
    for name, model in models.items():
        found[name] = model, run_network
        found[f"{name} compiled"] = model, torch.compile(run_network, dynamic=False)
    return found


def _infer(model: nn.Module, network: Callable, images: Tensor, dtype: torch.dtype) -> None:
    with torch.no_grad(), _autocast(images, dtype):
        network(model, images)


def _train(model: nn.Module, network: Callable, images: Tensor, dtype: torch.dtype) -> None:
    with _autocast(images, dtype):
        outputs = network(model, images)
        loss = sum(output.float().square().mean() for output in outputs)
    loss.backward()
    model.zero_grad(set_to_none=True)


def draw_benchmark(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw images per second, a panel for each mode and precision.

    Each model is a line if there are several batch sizes, else a bar.

    Args:
        results: Result of :func:`compare`.
    """
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys((entry["mode"], entry["precision"]) for entry in results))
    batches = sorted({entry["batch_size"] for entry in results})
    names = list(dict.fromkeys(entry["model"] for entry in results))
    height = 3.4 if len(batches) > 1 else 1 + 0.35 * len(names)
    figure = Figure(figsize=(4.2 * len(groups), height), layout="constrained", dpi=100)
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=len(batches) == 1)[0]
    speed, size = "images per second", "images in a batch"
    for axes, group in zip(panels, groups):
        chosen = [e for e in results if (e["mode"], e["precision"]) == group and "error" not in e]
        axes.set_title(" ".join(group), fontsize=10)
        axes.grid(alpha=0.3)
        if len(batches) == 1:
            rows = [names.index(entry["model"]) for entry in chosen]
            bars = axes.barh(rows, [entry["images_per_s"] for entry in chosen], height=0.6)
            axes.bar_label(bars, fmt="%.3g", fontsize=8, padding=2)
            axes.margins(x=0.15)
            axes.set_yticks(range(len(names)), names, fontsize=8)
            axes.set_xlabel(f"{speed}, {batches[0]} {size}", fontsize=9)
            continue
        for name in names:
            own = [entry for entry in chosen if entry["model"] == name]
            values = [entry["images_per_s"] for entry in own]
            axes.plot([entry["batch_size"] for entry in own], values, "o-", label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, map(str, batches))
        axes.set_ylim(bottom=0)
        axes.set_xlabel(size)
    if len(batches) == 1:
        panels[0].invert_yaxis()
    else:
        panels[0].set_ylabel(speed)
        panels[0].legend(fontsize=8)
    return figure
