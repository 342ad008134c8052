"""What torch.compile gains on a CPU: networks in eager mode and compiled, taking turns.

Each network has random weights and is compiled for one size. The time is the processor time of one
thread: medians of runs on images of 224x224 pixels. A training step is a forward and a backward
pass.

    python benchmarks/compiling.py --out compiling.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import mmvssm
from mmvssm import ops
from mmvssm.analysis.timing import machine
from mmvssm.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = [
    "vmamba-tiny-s1l8_8xb128_in1k",
    "efficient-vmamba-tiny_8xb128_in1k",
    "vim-tiny_8xb128_in1k",
]
#: What runs: whether a training step, the batch, and the backend of the scan.
CASES = [(False, 1, None), (False, 8, None), (False, 1, "torch"), (True, 4, None)]


def step(network: nn.Module, images: torch.Tensor) -> None:
    """Run a forward pass, and in training mode a backward pass with gradients from zero."""
    loss = sum(output.square().mean() for output in network(images))
    if network.training:
        network.zero_grad()
        loss.backward()


def compare(name: str, training: bool, batch: int, backend: str | None, repetitions: int) -> dict:
    """Compile a network for one case and time it beside eager mode."""
    network = mmvssm.get_model(name).backbone.train(training)
    torch.compiler.reset()
    images = torch.rand(batch, 3, 224, 224)
    ways: dict[str, Callable] = {"eager": network, "compiled": torch.compile(network)}
    times: dict[str, list[float]] = {way: [] for way in ways}
    with ops.backend(backend) if backend else nullcontext(), torch.set_grad_enabled(training):
        for turn in range(repetitions + 2):
            for way, run in ways.items():
                started = time.process_time()
                step(run, images)
                if turn > 1:  # the first two compile and warm up
                    times[way].append(time.process_time() - started)
    medians = {way: round(1e3 * statistics.median(t), 1) for way, t in times.items()}
    return {
        "model": name,
        "mode": "training" if training else "inference",
        "batch": batch,
        "scan": backend or "compiled kernels",
        "median_ms": medians,
        "ratio": round(medians["compiled"] / medians["eager"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    results = ROOT / "benchmarks" / "results" / "compiling.json"
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--only", choices=NETWORKS, help="one network (default: all)")
    parser.add_argument("--repetitions", type=int, default=7, help="runs of each (default: 7)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console, found = Console(highlight=False), []
    for name in NETWORKS:
        for case in CASES:
            if args.only in (None, name):
                with console.status(f"{name}: compiling takes up to a minute"):
                    found.append(compare(name, *case, args.repetitions))
                console.print_json(json.dumps(found[-1]))
    text = json.dumps({"machine": machine("cpu"), "results": found}, indent=1)
    atomic_write(args.out, lambda part: part.write_text(text + "\n"))
    table = Table("model", "mode", "batch", "scan", "eager", "compiled", "compiled / eager")
    for entry in found:
        row = [str(entry[key]) for key in ("model", "mode", "batch", "scan")]
        row += [f"{value} ms" for value in entry["median_ms"].values()]
        table.add_row(*row, str(entry["ratio"]))
    console.print(table)


if __name__ == "__main__":
    main()
