"""Count the parameters and FLOPs of a model."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmvssm.analysis import (
    Complexity,
    build_without_weights,
    check_outputs,
    count_flops,
    draw_complexity,
    image_size,
    write_outputs,
)
from mmvssm.engine import cli, measuring

DESCRIPTION = """\
Count the parameters and FLOPs of the model of a config of mmpretrain, mmdetection or
mmsegmentation, by layer.

A FLOP is a multiply-add, as in the papers. A classifier is counted at its test size (else 224x224),
a detector at 800x1280 (with 1000 boxes and 100 masks), a segmentor at 512x2048 (without auxiliary
heads). All parameters are counted. The cost of a scan follows the published convention of each
family: mostly 9 N + 1 for each scanned element with N states. No weights are needed and nothing is
computed, so even the largest model takes only seconds.
"""
EXAMPLES = """\
examples:
  python tools/analysis_tools/get_flops.py configs/vmamba/vmamba-tiny-s1l8_8xb128_in1k.py
  python tools/analysis_tools/get_flops.py CONFIG --shape 384 384 --depth 4
  python tools/analysis_tools/get_flops.py CONFIG --depth 2 --out cost.png cost.svg cost.json
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="height and width of the image (default: those of the papers, see above)",
    )
    parser.add_argument(
        "--depth",
        type=int,
        default=3,
        metavar="N",
        help="depth of the table and the figure in the module tree; 0 for no table (default: 3)",
    )
    measuring.add_out_option(parser, "FILE.json with all layers, FILE.png or FILE.svg")
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    if args.shape and min(args.shape) < 1:
        parser.error(f"--shape must be two positive numbers, got {args.shape}")
    if args.depth < 0:
        parser.error(f"--depth must be 0 or more, got {args.depth}")
    return args


def number(value: float) -> str:
    """Format a number with four digits and a unit."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:#.4g} {unit}"
    return f"{value:.0f}"


def show(found: Complexity, depth: int) -> None:
    console = Console(highlight=False)
    if depth:
        table = Table("layer", "class", box=None)
        for title in ("parameters", "FLOPs", "share"):
            table.add_column(title, justify="right")
        for layer in found.layers:
            level = layer.name.count(".") + 1 if layer.name else 0
            if level <= depth:
                name = "  " * level + (layer.name.rpartition(".")[2] or "model")
                share = f"{layer.macs / found.macs:.1%}"
                table.add_row(name, layer.kind, number(layer.parameters), number(layer.macs), share)
        console.print(table)
    height, width = found.shape
    console.print(f"counted: {found.convention}", soft_wrap=True)
    print(f"parameters: {found.parameters / 1e6:.2f} M ({found.parameters})")
    macs = f"{found.macs / 1e9:.2f} G" if found.macs >= 1e8 else number(found.macs)
    print(f"FLOPs: {macs} at {height}x{width}")


def main() -> None:
    args = parse_args()
    with measuring.refusals():
        check_outputs(args.out)
    cfg = cli.load_config(args.config, args.cfg_options)
    with measuring.refusals():
        found = count_flops(build_without_weights(cfg), args.shape or image_size(cfg))
    show(found, args.depth)
    with measuring.refusals():
        draw = partial(draw_complexity, found, max(args.depth, 1), Path(args.config).stem)
        write_outputs(args.out, found.as_dict(), draw)


if __name__ == "__main__":
    main()
