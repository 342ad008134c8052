"""``python -m mmvssm.ops --self-test``: check the kernels on this machine and time them.

Every kernel path that can run is compared with the float64 definition on awkward shapes. Each is
then timed. On a GPU the timings use the scans of the published models and are printed beside the
lower bound of the device, the PyTorch path, and the kernel of ``mamba_ssm`` if it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmvssm.files import atomic_write

from . import nvrtc, routes
from .backend import backend, built_devices, compiled_missing, missing_reason
from .info import info
from .problems import Scan
from .reference import selective_scan_2d_reference, selective_scan_reference
from .scan2d import selective_scan_2d
from .selective_scan import selective_scan

#: Largest relative errors allowed. Outputs are float32 for every input; gradients have the dtype of
#: the inputs.
OUTPUT_BOUND = 1e-5
GRADIENT_BOUNDS = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
#: Seconds that one timing may take.
_PATIENCE = 0.4

_VMAMBA_V0, _VMAMBA_V2 = (
    [
        Scan(f"{name}, {text}", batch, channels, d_state, height // 4, width // 4, 6)
        for text, batch, height, width in (
            ("224 px, batch 128", 128, 224, 224),
            ("512 px, batch 4", 4, 512, 512),
            ("800x1344 px, batch 2", 2, 800, 1344),
            ("800x1344 px, batch 1", 1, 800, 1344),
        )
    ]
    for name, channels, d_state in (("v0-tiny", 192, 16), ("tiny-s1l8", 96, 1))
)
#: First-stage scans of published models, with the dtypes that they run in.
_GPU_SCANS = [
    *((scan, torch.float32) for scan in _VMAMBA_V0),
    *((scan, torch.bfloat16) for scan in _VMAMBA_V2),
]
_CPU_SCANS = [
    (Scan("v0-tiny stage 2, 224 px, batch 2", 2, 192, 16, 28, 28, 12), torch.float32),
    (Scan("tiny-s1l8 stage 1, 224 px, batch 2", 2, 96, 1, 56, 56, 6), torch.float32),
]


def self_test(file: Path) -> bool:
    """Test and time all kernel paths; print tables and write a JSON report.

    Args:
        file: JSON file to write.

    Returns:
        Whether every check passed.
    """
    facts = info()
    for name, value in facts.items():
        print(f"{name + ':':26}{value}")
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        print("\nno GPU is visible to torch: only the CPU paths are tested")
    start = time.perf_counter()
    gpu = _gpu() if on_gpu else None
    report: dict[str, Any] = {
        "facts": facts,
        "platform": platform.platform(),
        "gpu": gpu,
        "checks": list(_checks(on_gpu)),
        "results": list(_timings(gpu)),
    }
    report["seconds"] = round(time.perf_counter() - start, 1)
    text = json.dumps(report, indent=1)
    atomic_write(file, lambda part: part.write_text(text + "\n"))
    wrong = [row for row in report["checks"] if not row["passed"]]
    print(f"\n{len(report['checks']) - len(wrong)} checks passed, {len(wrong)} failed", end="; ")
    print(f"{report['seconds']:.0f} s; wrote {str(file)!r}; please attach it to a report")
    return not wrong


def _paths(device: str) -> dict[str, str]:
    """Return for each backend of a device why it cannot run; empty if it can."""
    if device == "cpu":
        built = "cpu" in built_devices()
        return {"cpu": "" if built else missing_reason("cpu"), "torch": ""}
    return {
        "cuda": compiled_missing(0),
        "nvrtc": nvrtc.missing_reason(0),
        "torch": "",
    }


# Correctness


def _checks(on_gpu: bool) -> Iterator[dict]:
    print(f"\n{'path':8}{'type':10}{'scan':46}{'output':>10}{'gradients':>11}")
    for device in ("cpu", "cuda") if on_gpu else ("cpu",):
        for path, missing in _paths(device).items():
            if missing:
                print(f"{path:8}not tested: {missing}")
                continue
            with backend(path):
                for dtype in GRADIENT_BOUNDS:
                    for name, problem in _awkward():
                        yield _check(path, device, dtype, name, problem)


def _check(path: str, device: str, dtype: torch.dtype, name: str, problem: Callable) -> dict:
    torch.manual_seed(0)
    function, reference, tensors, activations, options = problem()
    exact, tested = {}, {}
    for key, tensor in tensors.items():
        rounded = tensor.to(dtype) if key in activations else tensor.float()
        exact[key] = rounded.double().requires_grad_()
        tested[key] = rounded.to(device).requires_grad_()
    want = reference(**exact, **options)
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    got = function(**tested, **moved, out_dtype=torch.float32)
    dy = torch.randn_like(want)
    wanted = torch.autograd.grad(want, list(exact.values()), dy)
    grads = torch.autograd.grad(got, list(tested.values()), dy.float().to(device))
    output = _error(got, want)
    gradient = max(_error(value, right) for value, right in zip(grads, wanted))
    # These comparisons fail for NaN, too.
    passed = output <= OUTPUT_BOUND and gradient <= GRADIENT_BOUNDS[dtype]
    words = str(dtype).removeprefix("torch.")
    mark = "" if passed else "  WRONG"
    print(f"{path:8}{words:10}{name:46}{output:10.1e}{gradient:11.1e}{mark}", flush=True)
    return {
        "path": path,
        "dtype": words,
        "shape": name,
        "output_error": output,
        "gradient_error": gradient,
        "passed": passed,
    }


def _error(value: Tensor, exact: Tensor) -> float:
    value, exact = value.detach().double().cpu(), exact.detach()
    return float((value - exact).norm() / exact.norm())


def _awkward() -> Iterator[tuple[str, Callable]]:
    """Yield the name of each problem and a function that makes it.

    A problem is a function, its definition, tensors, names of the activations, and options.
    """
    for shape in ((2, 2, 33, 5, 130), (1, 1, 70, 1, 257), (3, 2, 3, 20, 64), (1, 1, 1, 1, 1)):
        yield "sequences B{} K{} D{} N{} L{}".format(*shape), lambda s=shape: _sequences(*s)
    for shape in (
        (2, 35, 33, 4, 3, 2, "permutation"),
        (1, 300, 96, 4, 1, 6, "permutation"),
        (2, 130, 70, 3, 20, 3, "repeats"),
        (1, 81, 17, 2, 16, 17, "separate"),
        (1, 9, 4, 4, 1, 48, "disjoint"),
    ):
        yield "routes B{} P{} D{} K{} N{} R{} {}".format(*shape), lambda s=shape: _routes(*s)


def _sequences(batch: int, groups: int, channels: int, d_state: int, length: int):
    rows = groups * channels
    tensors = {
        "u": torch.randn(batch, rows, length),
        "delta": torch.randn(batch, rows, length) - 1,
        "A": -3 * torch.rand(rows, d_state),
        "B": torch.randn(batch, groups, d_state, length),
        "C": torch.randn(batch, groups, d_state, length),
        "D": torch.randn(rows),
        "delta_bias": 0.5 * torch.rand(rows),
    }

    def define(**values):
        return selective_scan_reference(**values)[0]

    return selective_scan, define, tensors, ("u", "delta", "B", "C"), {"delta_softplus": True}


def _routes(batch: int, pixels: int, channels: int, k: int, d_state: int, dt_rank: int, kind: str):
    options: dict[str, object] = {}
    if kind == "permutation":
        options["routes"] = torch.stack([torch.randperm(pixels) for _ in range(k)]).int()
    elif kind == "disjoint":
        options["routes"] = torch.randperm(pixels)[: pixels // k * k].view(k, -1).int()
    else:
        options["routes"] = torch.randint(-1, pixels, (k, pixels + 13)).int()
    if kind == "separate":
        options["num_out"] = pixels + 3
        options["out_routes"] = torch.randint(-1, pixels + 3, (k, pixels + 13)).int()
        options["merge"] = "none"
    rows = k * channels
    tensors = {
        "x": torch.randn(batch, pixels, channels),
        "x_dbl": torch.randn(batch, pixels, k, dt_rank + 2 * d_state),
        "A": -3 * torch.rand(rows, d_state),
        "dt_weight": 0.5 * torch.randn(k, channels, dt_rank),
        "dt_bias": torch.randn(k, channels) - 2,
        "D": torch.randn(rows),
    }
    return selective_scan_2d, selective_scan_2d_reference, tensors, ("x", "x_dbl"), options


# Time


def _gpu() -> dict[str, object]:
    """Describe the GPU, with the rates that the lower bounds are computed from."""
    properties = torch.cuda.get_device_properties(0)
    driver = nvrtc.Driver()
    clock = driver.attributes(driver.device(0))[nvrtc.CLOCK_KHZ] * 1e3
    return {
        "device": "cuda",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "bandwidth": _copy_bandwidth(),
        # 16 per multiprocessor and clock, from Turing to Blackwell
        "special": 16.0 * properties.multi_processor_count * clock,
    }


def _copy_bandwidth() -> float:
    """Measure the bytes per second that a copy within device memory reads and writes."""
    size = 2**28
    source, target = torch.empty(2, size, dtype=torch.uint8, device="cuda")
    return 2 * size / (1e-6 * _measure(lambda: target.copy_(source), "cuda"))


def _timings(gpu: dict | None) -> Iterator[dict]:
    device, scans = (gpu["device"], _GPU_SCANS) if gpu else ("cpu", _CPU_SCANS)
    other = _mamba_ssm() if gpu else None
    print(
        f"\n{'scan':42}{'form':11}{'pass':10}{'path':12}{'time/us':>12}{'floor/us':>10}{'ratio':>8}"
    )
    for scan, dtype in scans:
        table = routes.route_set("cross2d", scan.height, scan.width, device=device)
        forms: dict[str, tuple[Callable, dict, Callable]] = {
            "routes": (selective_scan_2d, {"routes": table}, scan.inputs_2d),
            "sequences": (selective_scan, {"delta_softplus": True}, scan.inputs_1d),
        }
        for form, (function, options, inputs) in forms.items():
            able = [path for path, missing in _paths(device).items() if not missing]
            paths = dict.fromkeys(able, function)
            if form == "sequences" and other is not None:
                paths["mamba_ssm"] = other
            for path, run in paths.items():
                with backend(path if path != "mamba_ssm" else "auto"):
                    times = _time_passes(run, inputs, options, dtype, device)
                for name, value in times.items():
                    yield _row(scan, form, dtype, name, path, value, gpu)


def _row(scan, form, dtype, name, path, value, gpu) -> dict:
    itemsize = torch.empty(0, dtype=dtype).element_size()
    words = str(dtype).removeprefix("torch.")
    row: dict[str, Any] = {
        "shape": scan.name,
        "form": form,
        "dtype": words,
        "pass": name,
        "path": path,
    }
    time_us = None if isinstance(value, str) else value
    floor_us = None
    if gpu is not None and gpu["special"]:
        rates = dict(bandwidth=gpu["bandwidth"], special=gpu["special"])
        floor_us = scan.floor_us(name == "backward", itemsize, 4, **rates)
    ratio = time_us / floor_us if time_us and floor_us else None
    figures = f"{time_us:12.1f}" if time_us else f"{value:>12}"
    figures += f"{floor_us:10.1f}" if floor_us else f"{'':10}"
    figures += f"{ratio:8.2f}" if ratio else ""
    print(f"{scan.name:42}{form:11}{name:10}{path:12}{figures}", flush=True)
    row.update(time_us=time_us, floor_us=floor_us, ratio=ratio, kind="measured")
    if time_us is None:
        row["error"] = value
    return row


def _time_passes(function, inputs, options, dtype, device) -> dict[str, float | str]:
    """Time the forward pass without gradients and the backward pass, in microseconds."""
    times: dict[str, float | str] = {"forward": "no memory", "backward": "no memory"}
    try:
        tensors = {n: t.requires_grad_() for n, t in inputs(dtype, device).items()}
        run = _with_options(function, tensors, options)
        with torch.no_grad():
            times["forward"] = _measure(run, device)
        y = run()
        dy, leaves = torch.randn_like(y), list(tensors.values())
        times["backward"] = _measure(
            lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True), device
        )
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
    return times


def _with_options(function, tensors, options):
    return lambda: function(**tensors, **options, out_dtype=torch.float32)


def _mamba_ssm() -> Callable | None:
    """Return the scan of the package ``mamba_ssm``, whose output has the dtype of its input."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return None
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError as error:
        print(f"mamba_ssm is not timed because it does not load: {error}")
        return None

    def run(u, delta, A, B, C, D, delta_bias, delta_softplus, out_dtype):
        return selective_scan_fn(u, delta, A, B, C, D, None, delta_bias, delta_softplus)

    return run


def _measure(run: Callable[[], object], device: str) -> float:
    """Return the median time of a run in microseconds, after a warm-up."""
    run()
    if device == "cpu":
        times = []
        start = time.perf_counter()
        while not times or time.perf_counter() - start < _PATIENCE:
            before = time.perf_counter()
            run()
            times.append(1e6 * (time.perf_counter() - before))
        return statistics.median(times)
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")  # larger than any L2 cache
    pairs = []
    start = time.perf_counter()
    while not pairs or (len(pairs) < 100 and time.perf_counter() - start < _PATIENCE):
        pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        flush.zero_()
        torch.cuda._sleep(1_000_000)  # lets the host run ahead of the device
        pair[0].record()
        run()
        pair[1].record()
        pairs.append(pair)
        torch.cuda.synchronize()
    return statistics.median(1e3 * begin.elapsed_time(end) for begin, end in pairs)
