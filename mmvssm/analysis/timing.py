"""Measuring time and memory of several implementations, and facts about the machine."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

PACKAGES = ("torch", "mmvssm", "mmengine", "mmcv", "mmpretrain", "numpy")


def measure(
    implementations: dict[str, Callable[[], object]],
    device: str,
    repetitions: int,
    warmups: int,
    budget: float = 20.0,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Run implementations in turn and report their times.

    Args:
        implementations: Functions by name; their order alternates from round to round.
        device: ``'cpu'`` (wall clock) or ``'cuda'`` (events, with the level-2 cache flushed).
        repetitions: Timed runs of each function.
        warmups: Runs before the timed ones.
        budget: Seconds after which a slow function is not run any more (but at least three times).
        progress: Called after each round of timed runs.

    Returns:
        For each name, ``median_ms``, ``min_ms``, ``repetitions`` and, on CUDA, ``peak_mib`` (see
        :func:`peak_memory`).
    """
    time_of = _run_cuda if device == "cuda" else _run_cpu
    times: dict[str, list[float]] = {name: [] for name in implementations}
    peaks: dict[str, float] = {}
    spent = dict.fromkeys(implementations, 0.0)
    for name, function in implementations.items():
        for _ in range(warmups):
            spent[name] += time_of(function) / 1e3
            if spent[name] > budget / 4:
                break
        if device == "cuda":
            peaks[name] = peak_memory(function, device) / 2**20
        spent[name] = 0.0
    names = list(implementations)
    for round_index in range(repetitions):
        for name in names if round_index % 2 == 0 else reversed(names):
            if spent[name] < budget or len(times[name]) < 3:
                times[name].append(time_of(implementations[name]))
                spent[name] += times[name][-1] / 1e3
        progress()
    return {
        name: {
            "median_ms": statistics.median(values),
            "min_ms": min(values),
            "repetitions": len(values),
            **({"peak_mib": peaks[name]} if name in peaks else {}),
        }
        for name, values in times.items()
    }


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the power of ``x`` with which ``y`` grows: the slope of a log-log regression."""
    return statistics.linear_regression([*map(math.log, x)], [*map(math.log, y)]).slope


def peak_memory(function: Callable[[], object], device: str) -> int:
    """Return the peak of bytes that torch allocates while ``function`` runs, above the start.

    Memory that kernels allocate without torch is not included.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # otherwise the profiler's library reports that there is no GPU
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's warnings on cycles do not apply here
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [e for e in events if e["name"] == "[memory]" and e["args"]["Device Type"] == 0]
    changes.sort(key=lambda event: event["ts"])
    return max(accumulate((event["args"]["Bytes"] for event in changes), initial=0))


def _run_cpu(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def _run_cuda(function: Callable[[], object]) -> float:
    _flush_cache()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _flush_cache() -> None:
    """Overwrite a buffer larger than any level-2 cache."""
    torch.empty(256 * 2**20, dtype=torch.int8, device="cuda").zero_()


def machine(device: str) -> dict[str, object]:
    """Return processor, threads, load, versions and, for CUDA, GPU and driver."""
    facts: dict[str, object] = {
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return facts


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
