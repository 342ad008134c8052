"""Draw our training curves and the authors' in one figure."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmvssm.analysis import check_outputs, draw_curves, read_curves, write_outputs
from mmvssm.analysis.curves import Curve
from mmvssm.engine import cli, measuring

DESCRIPTION = """\
Draw the curves of several training runs in one figure: losses, accuracies and other metrics, over
epochs or iterations.

A log is the work folder of tools/train.py (with all its runs, including resumed ones), a file
vis_data/scalars.json, a text log or .log.json of MMEngine or mmcv (as for the authors' detectors
and segmentors), or a log of the authors' classifiers: a text log of the code of Swin Transformer
(VMamba, MSVMamba), LocalMamba (also EfficientVMamba) or timm (MambaVision), the log.txt of DeiT's
code (Vim), a summary.csv of timm or a metrics.csv of LocalMamba. The zoo (docs/model_zoo.md) links
the published logs. Quantities in the authors' classifier logs get the same names as in ours: loss,
test_loss, accuracy/top1, accuracy/top5, and ema/accuracy/top1 for averaged weights.
"""
EXAMPLES = """\
examples:
  python tools/analysis_tools/curves.py work_dirs/NAME
  python tools/analysis_tools/curves.py work_dirs/NAME vssm1_tiny_0230s.txt --labels ours authors \\
      --keys loss accuracy/top1 --out curves.png curves.svg curves.json
  python tools/analysis_tools/curves.py work_dirs/SEGMENTOR --keys loss mIoU --out miou.png

All quantities are listed. Without --keys, the loss and the metrics that all logs share are drawn.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("logs", nargs="+", metavar="LOG", help="logs, or work folders")
    parser.add_argument(
        "--keys", nargs="+", metavar="KEY", help="quantities to draw, one panel each"
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="NAME",
        help="names of the logs (default: names of the files and folders)",
    )
    measuring.add_out_option(parser, "FILE.png, FILE.svg, or FILE.json with the curves")
    args = parser.parse_args()
    if args.labels is not None and len(args.labels) != len(args.logs):
        parser.error(f"--labels must name all {len(args.logs)} logs, got {len(args.labels)} names")
    short = [Path(log).name for log in args.logs]
    args.labels = args.labels or (short if len(set(short)) == len(short) else args.logs)
    if len(set(args.labels)) < len(args.labels):
        parser.error("a log, or one of --labels, is given twice")
    return args


def choose(logs: dict[str, dict[str, Curve]]) -> list[str]:
    """Return the loss and the metrics that all logs share."""
    shared = [name for name in next(iter(logs.values())) if all(name in c for c in logs.values())]
    metrics = [name for name in shared if "loss" not in name and name != "grad_norm"]
    losses = [name for name in shared if name == "loss"]
    return (losses + metrics)[:4] or shared[:1]


def show(logs: dict[str, dict[str, Curve]]) -> None:
    table = Table("log", "key", box=None)
    for title in ("points", "until", "last", "least", "largest"):
        table.add_column(title, justify="right")
    for label, curves in logs.items():
        for name, curve in curves.items():
            values = [curve.values[-1], min(curve.values), max(curve.values)]
            until = f"{curve.unit} {curve.steps[-1]:.4g}"
            row = [label, name, str(len(curve.values)), until, *(f"{v:.4g}" for v in values)]
            table.add_row(*row)
    Console(highlight=False).print(table)


def main() -> None:
    args = parse_args()
    with measuring.refusals():
        check_outputs(args.out)
        logs = {label: read_curves(Path(log)) for label, log in zip(args.labels, args.logs)}
    known = {name for curves in logs.values() for name in curves}
    keys = args.keys or choose(logs)
    if unknown := [key for key in keys if key not in known]:
        cli.fail(f"no log has {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if args.out and not keys:
        cli.fail("the logs have no quantity in common: choose some with --keys")
    show(logs)
    data = {
        label: {name: curve.as_dict() for name, curve in curves.items()}
        for label, curves in logs.items()
    }
    with measuring.refusals():
        write_outputs(args.out, data, lambda: draw_curves(logs, keys))
    for path in args.out:
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
