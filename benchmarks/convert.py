"""Measure time and memory of tools/convert_ema.py on large files, each run in its own process.

Memory is the peak of the process minus that of the same tool when it refuses an empty file, so that
the imported libraries do not count; resident pages of the memory-mapped file do.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from mmvssm.analysis.timing import machine
from mmvssm.checkpoint import KeyMap
from mmvssm.models import VMamba

TOOL = Path(__file__).resolve().parents[1] / "tools" / "convert_ema.py"
RUNS = {
    "weights": ("weights.pth", "a.pth"),
    "weights, verified": ("weights.pth", "b.pth", "--verify"),
    "weights to bf16": ("weights.pth", "c.pth", "--dtype", "bf16"),
    "weights to safetensors": ("weights.pth", "d.safetensors"),
    "safetensors to fp16": ("weights.safetensors", "h.pth", "--dtype", "fp16"),
    "weights of the old format": ("old.pth", "e.pth"),
    "training": ("training.pth", "f.pth"),
    "back to the authors' names": ("weights.pth", "g.pth", "--reverse"),
}


def make_files(folder: Path, size: float) -> None:
    """Write files of ``size`` GB: weights alone, in every format, and a training checkpoint."""
    for name, copies in (("weights", 1), ("training", 4)):
        weights, arch = make_weights(size / copies)
        # the files describe their network, whose arch has no name
        meta = dict(mmvssm=dict(type="mmvssm.VMamba", arch=arch))
        content: dict = {"model": weights, "meta": meta}
        if copies > 1:
            content["model_ema"] = {key: value.clone() for key, value in weights.items()}
            content["optimizer"] = [[value.clone(), value.clone()] for value in weights.values()]
        torch.save(content, folder / f"{name}.pth")
        if copies == 1:
            torch.save(content, folder / "old.pth", _use_new_zipfile_serialization=False)
            packed = {key: value.contiguous() for key, value in weights.items()}
            save_file(packed, folder / "weights.safetensors", {"meta": json.dumps(meta)})


def make_weights(size: float) -> tuple[dict[str, torch.Tensor], dict]:
    """Return weights of a VMamba of about ``size`` GB under the original names, and its arch."""
    dims, block = 160, 1
    with torch.device("meta"):
        blocks = [
            sum(p.numel() for p in VMamba(dict(embed_dims=dims, depths=(2, 2, n, 2))).parameters())
            for n in (1, 2)
        ]
    block = max(1, round((size * 1e9 / 4 - blocks[0]) / (blocks[1] - blocks[0])) + 1)
    arch = dict(embed_dims=dims, depths=(2, 2, block, 2))
    backbone = VMamba(arch, out_indices=3)
    head = {"head.fc.weight": torch.randn(1000, 8 * dims), "head.fc.bias": torch.randn(1000)}
    weights = {**backbone.state_dict(prefix="backbone."), **head}
    return KeyMap("vmamba").to_original(weights), arch


def run(folder: Path, arguments: tuple[str, ...]) -> tuple[float, float, int]:
    """Run the tool; return seconds, peak memory in MB and exit status."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(TOOL), *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    return seconds, usage.ru_maxrss / 1e3, os.waitstatus_to_exitcode(status)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", type=float, default=1.0, metavar="GB", help="size of each file (default: 1)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    table = Table("run", "file (MB)", "seconds", "peak memory (MB)", "of the file", box=None)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty.pth").touch()
        # in another process, so that its memory does not count as the tool's
        maker = multiprocessing.get_context("spawn").Process(
            target=make_files, args=(folder, args.size)
        )
        maker.start()
        maker.join()
        if maker.exitcode:
            sys.exit("convert.py: error: writing the test files failed")
        floor = min(run(folder, ("empty.pth", "x.pth"))[1] for _ in range(2))
        for title, arguments in RUNS.items():
            size = (folder / arguments[0]).stat().st_size / 1e6
            seconds, memory, status = run(folder, arguments)
            if status:
                sys.exit(f"convert.py: error: the run of {title!r} failed")
            memory -= floor
            results.append(
                dict(
                    run=title,
                    arguments=arguments,
                    file_mb=size,
                    seconds=seconds,
                    memory_mb=memory,
                    ratio=memory / size,
                )
            )
            table.add_row(
                title, f"{size:.0f}", f"{seconds:.1f}", f"{memory:.0f}", f"{memory / size:.2f}"
            )
    Console().print(table)
    if args.out is not None:
        report = dict(machine=machine("cpu"), libraries_mb=floor, results=results)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
