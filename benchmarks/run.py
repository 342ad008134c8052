"""Benchmark the ops and the models against their baselines, all in one process.

Every suite runs its implementations in alternating order on fresh random inputs. Medians, minima,
ratios and errors against float64 go to a JSON file, with the machine, the versions and the load.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from problems import (
    H200,
    REFERENCE_SCANS,
    TINY_S1L8,
    V0_TINY,
    gather_scan_merge,
    sliced_loop,
    stages,
)
from rich.console import Console
from torch import Tensor

from mmvssm import ops
from mmvssm.analysis import save_figure, write_outputs
from mmvssm.analysis.timing import exponent, machine, measure
from mmvssm.ops.problems import Scan

SUITES = ("scan", "scan2d", "models", "scaling", "import")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
console = Console(highlight=False)


def with_backward(function: Callable[..., Tensor], inputs: dict[str, Tensor]) -> Callable[[], None]:
    """Return a run of ``function`` and of its backward pass for all tensor inputs."""
    leaves = {
        n: t.detach().requires_grad_() if isinstance(t, Tensor) else t for n, t in inputs.items()
    }

    def run() -> None:
        y = function(**leaves)
        wanted = [t for t in leaves.values() if isinstance(t, Tensor)]
        torch.autograd.grad(y, wanted, torch.ones_like(y))

    return run


def without_grad(function: Callable[..., Tensor], inputs: dict[str, Tensor]) -> Callable[[], None]:
    """Return a run of ``function`` without gradients."""

    def run() -> None:
        with torch.no_grad():
            function(**inputs)

    return run


def errors(y: Tensor, expected: Tensor) -> dict[str, float]:
    """Return the largest and the RMS error, relative to the RMS of the exact values."""
    difference, scale = y.double().cpu() - expected, expected.square().mean().sqrt()
    return {
        "max": float(difference.abs().max() / scale),
        "rms": float(difference.square().mean().sqrt() / scale),
    }


def record(results: list, entry: dict, times: dict[str, dict[str, float]], first: str) -> None:
    """Append a result, with the ratio of each time to that of ``first``, and print it."""
    for values in times.values():
        values["ratio"] = values["median_ms"] / times[first]["median_ms"]
    results.append({**entry, "times": times})
    shown = ", ".join(f"{n} {v['median_ms']:.3g} ms ({v['ratio']:.3g}x)" for n, v in times.items())
    console.print(f"{entry['suite']} {entry['name']} {entry.get('pass', '')}: {shown}")


def run_scan(args: argparse.Namespace, results: list) -> None:
    """Time the 1-D scan against loops (CPU) or the floor (GPU)."""
    if args.device == "cpu":
        problems = [(scan, "fp32") for scan in REFERENCE_SCANS]
    else:
        sizes = [(128, (224, 224)), (4, (512, 512)), (2, (800, 1344))]
        problems = [
            (scan, dtype)
            for batch, size in sizes
            for dtype in ("fp32", "bf16")
            for scan in (
                *stages("v0-tiny", batch, size, V0_TINY, 16),
                *stages("tiny-s1l8", batch, size, TINY_S1L8, 1),
            )
        ]
    for scan, dtype_name in problems:
        inputs = scan.inputs_1d(DTYPES[dtype_name], args.device)
        kernel = partial(ops.selective_scan, delta_softplus=True, out_dtype=torch.float32)
        functions = {"mmvssm": kernel}
        if args.device == "cpu":
            functions |= {
                "loop, slicing": sliced_loop,
                "loop, unbind": lambda **t: ops.selective_scan_reference(**t, delta_softplus=True)[
                    0
                ],
                "chunked torch": lambda **t: ops.selective_scan_chunked(**t, delta_softplus=True)[
                    0
                ],
            }
        for name, wrap in {"forward": without_grad, "forward+backward": with_backward}.items():
            implementations = {n: wrap(f, inputs) for n, f in functions.items()}
            if name != "forward" and args.device == "cpu":
                del implementations["loop, slicing"]  # its backward pass is quadratic in L
            times = measure(implementations, args.device, args.repetitions, args.warmups)
            entry = {"suite": "scan", "name": scan.name, "pass": name, "dtype": dtype_name}
            if args.device == "cuda":
                itemsize = inputs["u"].element_size()
                passes = (False,) if name == "forward" else (False, True)
                entry["floor_ms"] = 1e-3 * sum(
                    scan.floor_us(backward, itemsize, 4, **H200) for backward in passes
                )
                entry["ratio_to_floor"] = times["mmvssm"]["median_ms"] / entry["floor_ms"]
            record(results, entry, times, "mmvssm")
    scan = Scan("accuracy B1 K4 D64 N16 L784", 1, 64, 16, 28, 28, 4)
    for stress in (False, True):
        inputs = scan.inputs_1d(torch.float32, args.device, stress)
        exact = {n: t.double().cpu() for n, t in inputs.items()}
        expected = ops.selective_scan_reference(**exact, delta_softplus=True)[0]
        entry = {
            "suite": "scan",
            "name": scan.name,
            "steps": "[1, 20]" if stress else "[1e-3, 0.1]",
            "error_mmvssm": errors(ops.selective_scan(**inputs, delta_softplus=True), expected),
            "error_loop": errors(
                ops.selective_scan_reference(**inputs, delta_softplus=True)[0], expected
            ),
        }
        results.append(entry)
        console.print(f"scan errors against float64, steps {entry['steps']}: {entry}")


def run_scan2d(args: argparse.Namespace, results: list) -> None:
    """Time the route form against gather + 1-D kernel + merge of the same package."""
    if args.device == "cpu":
        settings = [(1, (224, 224), "fp32")]
    else:
        settings = [(128, (224, 224), d) for d in ("bf16", "fp32")]
        settings += [(4, (512, 512), "bf16"), (1, (800, 1344), "bf16")]
    for batch, size, dtype_name in settings:
        scans = stages("v0-tiny", batch, size, V0_TINY, 16)
        for scan in scans + stages("tiny-s1l8", batch, size, TINY_S1L8, 1):
            inputs = scan.inputs_2d(DTYPES[dtype_name], args.device)
            inputs["routes"] = ops.routes.route_set(
                "cross2d", scan.height, scan.width, device=args.device
            )
            for name, wrap in {"forward": without_grad, "forward+backward": with_backward}.items():
                implementations = {
                    "mmvssm": wrap(ops.selective_scan_2d, inputs),
                    "gather + scan + merge": wrap(gather_scan_merge, inputs),
                }
                times = measure(implementations, args.device, args.repetitions, args.warmups)
                entry = {"suite": "scan2d", "name": scan.name, "pass": name, "dtype": dtype_name}
                record(results, entry, times, "mmvssm")


def build_classifiers(device: str) -> dict[str, torch.nn.Module]:
    """Build Swin-T, ConvNeXt-T and two VMambas as mmpretrain classifiers."""
    from mmpretrain.models import build_classifier

    def classifier(backbone: dict, width: int) -> torch.nn.Module:
        head = {"type": "LinearClsHead", "num_classes": 1000, "in_channels": width}
        neck = {"type": "GlobalAveragePooling"}
        config = {"type": "ImageClassifier", "backbone": backbone, "neck": neck, "head": head}
        model = build_classifier(Config(config))
        model.init_weights()
        return model.to(device)

    return {
        "Swin-T": classifier({"type": "SwinTransformer", "arch": "tiny"}, 768),
        "ConvNeXt-T": classifier(
            {"type": "ConvNeXt", "arch": "tiny", "gap_before_final_norm": False}, 768
        ),
        "VMamba v0-tiny": classifier(
            {"type": "mmvssm.VMamba", "arch": "v0-tiny", "out_indices": (3,)}, 768
        ),
        "VMamba tiny-s1l8": classifier(
            {"type": "mmvssm.VMamba", "arch": "tiny-s1l8", "out_indices": (3,)}, 768
        ),
    }


def run_models(args: argparse.Namespace, results: list) -> None:
    """Time classifiers: latency, larger batches, training steps; on a GPU in bfloat16 too."""
    models = build_classifiers(args.device)

    def infer(model: torch.nn.Module, images: Tensor) -> None:
        with torch.no_grad(), torch.autocast(args.device, torch.bfloat16, enabled=autocast):
            model(images)

    def train(model: torch.nn.Module, images: Tensor) -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=autocast):
            loss = model(images)[0].float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    batch = 128 if args.device == "cuda" else 8
    settings = [(1, "inference", False), (batch, "inference", args.device == "cuda")]
    settings += [(batch, "training", False)]
    if args.device == "cuda":
        settings += [(batch, "training", True)]
    for batch, mode, autocast in settings:
        images = torch.randn(batch, 3, 224, 224, device=args.device)
        for model in models.values():
            model.train(mode == "training")
        run = train if mode == "training" else infer
        implementations = {n: partial(run, m, images) for n, m in models.items()}
        times = measure(implementations, args.device, args.repetitions, args.warmups)
        precision = "bf16 autocast" if autocast else "fp32"
        entry = {"suite": "models", "name": f"224x224 bs{batch}", "pass": mode, "dtype": precision}
        record(results, entry, times, "Swin-T")


def run_scaling(args: argparse.Namespace, results: list) -> None:
    """Fit time against pixels: the slope of log time over log pixels."""
    sizes = (224, 448, 896, 1792)
    for name, model in build_classifiers(args.device).items():
        model.eval()
        implementations = {}
        for size in sizes:
            image = torch.randn(1, 3, size, size, device=args.device)
            implementations[str(size)] = without_grad(model, {"inputs": image})
        times = measure(implementations, args.device, min(args.repetitions, 7), 2)
        medians = [times[str(size)]["median_ms"] for size in sizes]
        slope = exponent([size**2 for size in sizes], medians)
        entry = {"suite": "scaling", "name": name, "exponent": slope}
        record(results, entry, times, str(sizes[0]))
        console.print(f"scaling {name}: time ~ pixels^{slope:.3f}")


def draw_latency(results: list) -> Figure:
    """Plot time per image against image side for each model of the suite ``scaling``."""
    figure = Figure(figsize=(6, 3.4), layout="constrained", dpi=100)
    axes = figure.subplots()
    for entry in results:
        if entry["suite"] == "scaling":
            sides, times = zip(*((int(k), v["median_ms"]) for k, v in entry["times"].items()))
            style = "o-" if entry["name"].startswith("VMamba") else "s--"
            label = f"{entry['name']}, pixels^{entry['exponent']:.2f}"
            axes.loglog(sides, times, style, markersize=4, label=label)
    axes.set_xticks(sides, map(str, sides))
    axes.set_xticks([], minor=True)
    axes.set_xlabel("side of the image (pixels)")
    axes.set_ylabel("time of an image (ms)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return figure


def run_import(args: argparse.Namespace, results: list) -> None:
    """Time ``import mmvssm`` against MMEngine's own import."""

    def start(module: str) -> None:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    implementations = {
        "mmengine": partial(start, "mmengine"),
        "mmengine and mmvssm": partial(start, "mmengine, mmvssm"),
    }
    times = measure(implementations, "cpu", args.repetitions, 2)
    record(results, {"suite": "import", "name": "interpreter start"}, times, "mmengine")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python benchmarks/run.py --suite scan models --out results.json",
    )
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repetitions", type=int, help="timed runs (CPU 15, GPU 100)")
    parser.add_argument("--warmups", type=int, help="untimed runs before them (CPU 3, GPU 25)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--picture", type=Path, help="plot of the suite scaling to write (.png)")
    args = parser.parse_args()
    if args.picture and "scaling" not in args.suite:
        parser.error(f"--picture needs the suite scaling, but --suite is {' '.join(args.suite)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    on_gpu = args.device == "cuda"
    args.repetitions = args.repetitions or (100 if on_gpu else 15)
    args.warmups = args.warmups or (25 if on_gpu else 3)
    if args.repetitions < 3:
        parser.error(f"--repetitions must be at least 3, got {args.repetitions}")
    return args


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    results: list[dict] = []
    before = machine(args.device)
    suites = {
        "scan": run_scan,
        "scan2d": run_scan2d,
        "models": run_models,
        "scaling": run_scaling,
        "import": run_import,
    }
    for name in args.suite:
        suites[name](args, results)
    if args.out:
        content = {
            "machine": before,
            "load_after": os.getloadavg(),
            "ops": ops.info(),
            "results": results,
        }
        for name in ("extension", "nvrtc"):  # paths of this machine
            content["ops"].pop(name, None)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_outputs([args.out], content)
        console.print(f"wrote {args.out}")
    if args.picture:
        save_figure(draw_latency(results), args.picture)
        console.print(f"wrote {args.picture}")


if __name__ == "__main__":
    main()
