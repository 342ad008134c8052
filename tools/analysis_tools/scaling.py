"""Measure cost and accuracy of a model at several image sizes."""

from __future__ import annotations

import argparse
import io
from contextlib import redirect_stdout
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config
from mmengine.model import BaseModel
from rich.console import Console
from rich.table import Table

from mmvssm.analysis import (
    check_outputs,
    draw_scaling,
    evaluate,
    main_metrics,
    pipeline_at,
    scale,
    write_outputs,
)
from mmvssm.analysis.accuracy import MAIN_METRICS
from mmvssm.analysis.benchmark import MODES, PRECISIONS
from mmvssm.analysis.timing import machine
from mmvssm.engine import cli, measuring
from mmvssm.engine.data_check import require_data
from mmvssm.hub import load_weights
from mmvssm.progress import step_bar
from mmvssm.zoo import build_model

SIZES = (64, 112, 224, 384, 512, 640, 768, 1024, 1120, 1280)
DESCRIPTION = """\
Measure FLOPs, time and memory of a model on square images of several sizes and, with a checkpoint,
its accuracy, mAP or mIoU at each size without further training.

FLOPs, times and memory are measured as by get_flops.py and benchmark.py. The tool prints the powers
of the number of pixels with which they grow; a power of about 1 means that a model scales linearly.

Metrics are computed on the config's test data with its own test pipeline, scaled in proportion. For
classifiers, the size is that of the crop, and the resize before is scaled accordingly (256 for a
crop of 224). For detectors and segmentors, the size is that of the shorter side, with a
proportional limit of the longer side (1333 for 800). Position embeddings are resized.
"""
EXAMPLES = f"""\
examples:
  python tools/analysis_tools/scaling.py configs/vmamba/vmamba-tiny-s1l8_8xb128_in1k.py
  python tools/analysis_tools/scaling.py CONFIG --sizes 224 384 512 --modes training --device cuda
  python tools/analysis_tools/scaling.py CONFIG --checkpoint mmvssm://vmamba-tiny-s1l8 \\
      --out scaling.json scaling.png scaling.svg

Default sizes: {" ".join(map(str, SIZES))}. Large ones take minutes on a CPU. No code of the
checkpoint is run.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="weights of the model, a file or mmvssm://NAME, to measure accuracy, mAP or mIoU, too;"
        " needs the config's test data",
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--mode", choices=MODES, default="inference", help="what to time (default: inference)"
    )
    parser.add_argument(
        "--precision", choices=tuple(PRECISIONS), default="fp32", help="default: fp32"
    )
    measuring.add_timing_options(parser)
    measuring.add_out_option(parser, "FILE.json, FILE.png or FILE.svg")
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    measuring.check_timing_options(parser, args)
    if min(*args.sizes, args.batch_size) < 1:
        parser.error("--sizes and --batch-size must be positive numbers")
    return args


def check_evaluation(cfg: Config, checkpoint: str) -> None:
    """Check, before any work is done, that metrics can be measured."""
    cli.require_checkpoint(checkpoint)
    cli.library_of(cfg, "--checkpoint")
    for part in ("test_dataloader", "test_evaluator"):
        if cfg.get(part) is None:
            cli.fail(f"--checkpoint needs a {part} in the config")
    require_data(cfg, "test_dataloader")
    with measuring.refusals():
        at_size(cfg, 224)


def at_size(cfg: Config, size: int) -> Config:
    """Return the config with test pipelines changed to an image size."""
    cfg = deepcopy(cfg)
    for dataset in cli.leaf_datasets(cfg.test_dataloader.dataset):
        dataset.pipeline = pipeline_at(dataset.pipeline, size)
    return cfg


def metrics_at(model: BaseModel, cfg: Config, size: int) -> dict[str, float]:
    """Return the metrics at a size, without printing COCO's tables."""
    with redirect_stdout(io.StringIO()):
        metrics = evaluate(model, at_size(cfg, size))
    if not main_metrics(metrics):
        wanted = ", ".join(MAIN_METRICS)
        raise ValueError(f"the test evaluator must give one of {wanted}, got {', '.join(metrics)}")
    return {name: float(value) for name, value in metrics.items()}


def show(found: dict) -> None:
    table = Table(box=None)
    metrics = main_metrics(found["results"][0].get("metrics", {}))
    for title in ("size", *metrics, "GFLOPs", "ms", "images/s", "peak MiB"):
        table.add_column(title, justify="right")
    for entry in found["results"]:
        row = [str(entry["size"]), *(f"{entry['metrics'][name]:.4g}" for name in metrics)]
        row.append(f"{entry['macs'] / 1e9:#.3g}")
        if "error" in entry:
            row.append(entry["error"])
        else:
            row += [f"{entry[key]:.4g}" for key in ("median_ms", "images_per_s", "peak_mib")]
        table.add_row(*row)
    Console(highlight=False).print(table)
    for key, name in (("macs", "FLOPs"), ("median_ms", "time"), ("peak_mib", "memory")):
        if key in found["exponents"]:
            print(f"{name} ~ pixels^{found['exponents'][key]:.3f}")


def main() -> None:
    args = parse_args()
    with measuring.refusals():
        check_outputs(args.out)
    cfg = cli.load_config(args.config, args.cfg_options)
    if args.checkpoint:
        check_evaluation(cfg, args.checkpoint)
    with measuring.refusals():
        model = build_model(cfg)
        if args.checkpoint:
            load_weights(model, args.checkpoint)
    before = machine(args.device)
    parts = 2 if args.checkpoint else 1
    with measuring.refusals(), step_bar("sizes", parts * len(args.sizes)) as progress:
        found = scale(
            model,
            args.sizes,
            (lambda size: metrics_at(model, cfg, size)) if args.checkpoint else None,
            progress,
            batch_sizes=(args.batch_size,),
            modes=(args.mode,),
            precisions=(args.precision,),
            device=args.device,
            repetitions=args.repetitions,
        )
    show(found)
    with measuring.refusals():
        title = Path(args.config).stem
        write_outputs(args.out, dict(machine=before, **found), lambda: draw_scaling(found, title))


if __name__ == "__main__":
    main()
