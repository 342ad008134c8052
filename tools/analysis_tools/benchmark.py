"""Compare models by latency, throughput and memory."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmvssm import ops
from mmvssm.analysis import check_outputs, compare, draw_benchmark, write_outputs
from mmvssm.analysis.benchmark import MODES, PRECISIONS
from mmvssm.analysis.timing import machine
from mmvssm.engine import cli, measuring
from mmvssm.progress import step_bar
from mmvssm.zoo import build_model

DESCRIPTION = """\
Compare models by latency, throughput and peak memory in one process.

Give one or more configs of mmpretrain, mmdetection or mmsegmentation. The models run in turn, in
alternating order, so that changes in the load of the machine affect all of them; every timing
includes synchronising with the device. Medians are printed. A run is the network from normalised
random images to the outputs of its heads (with 1000 boxes and 100 masks per image for two-stage
detectors); training adds the backward pass, but not the optimizer step. Weights are random, which
does not affect the timings.
"""
EXAMPLES = """\
examples:
  python tools/analysis_tools/benchmark.py configs/vmamba/vmamba-tiny-s1l8_8xb128_in1k.py
  python tools/analysis_tools/benchmark.py CONFIG OTHER --batch-sizes 1 8 32 --modes inference training
  python tools/analysis_tools/benchmark.py CONFIG --device cuda --batch-sizes 128 \\
      --precisions fp32 bf16 --out speed.json speed.png
  python tools/analysis_tools/benchmark.py CONFIG --compile --modes inference training

Peak memory is the weights plus the peak that torch allocates in a run. Other programs on the
machine distort timings; the JSON file records the load.
"""  # noqa: E501


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="config files to compare")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        default=(224, 224),
        metavar=("H", "W"),
        help="height and width of the images (default: 224 224)",
    )
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1], metavar="N", help="default: 1"
    )
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=["inference"], help="default: inference"
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=tuple(PRECISIONS),
        default=["fp32"],
        help="fp32, or autocast to bf16 or fp16 (default: fp32)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also measure each model under torch.compile (compiling takes minutes per setting)",
    )
    measuring.add_timing_options(parser)
    measuring.add_out_option(
        parser, "FILE.json with the machine and all numbers, FILE.png or FILE.svg"
    )
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    measuring.check_timing_options(parser, args)
    if min(*args.shape, *args.batch_sizes) < 1:
        parser.error("--shape and --batch-sizes must be positive numbers")
    return args


def names_of(configs: list[str]) -> list[str]:
    """Return the names of configs, or their paths if two names are the same."""
    stems = [Path(config).stem for config in configs]
    if len(set(configs)) < len(configs):
        cli.fail("a config is given twice")
    return stems if len(set(stems)) == len(stems) else configs


def show(results: list[dict]) -> None:
    table = Table(box=None)
    for title in ("model", "mode", "precision"):
        table.add_column(title, overflow="fold")
    numbers = ["batch", "ms", "least", "images/s", "peak MiB", "time"]
    if any("compile_s" in entry for entry in results):
        numbers.append("compiling s")
    for title in numbers:
        table.add_column(title, justify="right")
    for entry in results:
        row = [entry["model"], entry["mode"], entry["precision"], str(entry["batch_size"])]
        if "error" in entry:
            row.append(entry["error"])
        else:
            row += [f"{entry[key]:.4g}" for key in ("median_ms", "min_ms", "images_per_s")]
            row += [f"{entry['peak_mib']:.0f}", f"{entry['ratio']:.2f}x"]
            row += [f"{entry['compile_s']:.0f}"] if "compile_s" in entry else []
        table.add_row(*row)
    Console(highlight=False).print(table)


def main() -> None:
    args = parse_args()
    with measuring.refusals():
        check_outputs(args.out)
    names = names_of(args.configs)
    configs = [cli.load_config(config, args.cfg_options) for config in args.configs]
    with measuring.refusals():
        models = {name: build_model(cfg) for name, cfg in zip(names, configs)}
    before = machine(args.device)
    settings = len(args.batch_sizes) * len(args.modes) * len(args.precisions)
    with (
        measuring.refusals(),
        step_bar("rounds", settings * args.repetitions) as progress,
    ):
        results = compare(
            models,
            args.shape,
            args.batch_sizes,
            args.modes,
            args.precisions,
            args.device,
            args.repetitions,
            progress=progress,
            compiled=args.compile,
        )
    show(results)
    info = {name: value for name, value in ops.info().items() if name != "extension"}
    data = dict(machine=before, load_after=os.getloadavg(), ops=info, results=results)
    with measuring.refusals():
        write_outputs(args.out, data, lambda: draw_benchmark(results))


if __name__ == "__main__":
    main()
