#!/usr/bin/env python
"""Train and test a small VMamba on real handwritten digits, and draw what it learned.

    tools/demo.py cls    classification, mmpretrain
    tools/demo.py det    boxes and masks with Mask R-CNN, mmdet
    tools/demo.py seg    pixel labels with UperNet, mmseg

The tool creates the data in data/ if they are missing, trains with tools/train.py, tests
with tools/test.py, and writes the checkpoint, the metrics, the curves and a figure of
predictions to work_dirs/demo-TASK/. Both folders are in the working directory. If it is
interrupted, run it again: it continues where it stopped, without repeating finished steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Patch, Rectangle
from mmengine.config import Config, DictAction
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement

from mmvssm.engine import cli
from mmvssm.engine.plain_files import read_files_safely
from mmvssm.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
COLOURS = [plt.get_cmap("tab10")(digit)[:3] for digit in range(10)]


class Sample(NamedTuple):
    """A validation image `(H, W, 3)` in RGB from 0 to 1, with its annotation and prediction."""

    image: np.ndarray
    result: BaseDataElement


@contextmanager
def figure(path: Path, rows: int, columns: int, size: float) -> Iterator[np.ndarray]:
    """Yield a grid of axes `(rows, columns)`, and save the figure to `path` at the end."""
    fig, axes = plt.subplots(
        rows, columns, figsize=(size * columns, size * rows), squeeze=False, layout="constrained"
    )
    yield axes
    atomic_write(path, lambda part: fig.savefig(part, dpi=100))
    plt.close(fig)


def draw_labels(path: Path, samples: list[Sample]) -> None:
    """Draw images with their predicted digits, red if wrong."""
    columns = 8
    with figure(path, len(samples) // columns, columns, size=1.1) as axes:
        for axis, (image, result) in zip(axes.flat, samples):
            predicted, true = int(result.pred_label), int(result.gt_label)
            title = f"{predicted}" if predicted == true else f"{predicted}, is {true}"
            axis.set_title(title, color="green" if predicted == true else "red", fontsize=9)
            axis.imshow(image)
            axis.axis("off")
        axes[0, 0].figure.suptitle("predicted digits; red if wrong", fontsize=10)


def draw_pairs(path: Path, samples: list[Sample], draw: Callable) -> None:
    """Draw pairs of panels with `draw(axis, sample, predicted)`: annotation and prediction."""
    with figure(path, len(samples) // 2, 4, size=2.2) as axes:
        for pair, sample in zip(axes.reshape(-1, 2), samples):
            for axis, title in zip(pair, ("annotated", "predicted")):
                draw(axis, sample, title == "predicted")
                axis.set_title(title, fontsize=9)
                axis.axis("off")
        handles = [Patch(color=colour, label=digit) for digit, colour in enumerate(COLOURS)]
        axes[0, 0].figure.legend(handles=handles, loc="outside lower center", ncols=10)


def draw_instances(axis: plt.Axes, sample: Sample, predicted: bool) -> None:
    """Draw boxes and masks; of the predictions, only those with a score above 0.5."""
    overlay = sample.image.copy()
    if predicted:
        instances = sample.result.pred_instances
        instances = instances[instances.scores > 0.5]
        masks = instances.masks.numpy()
    else:
        instances = sample.result.gt_instances
        masks = instances.masks.masks.astype(bool)
    for mask, digit in zip(masks, instances.labels):
        overlay[mask] = 0.4 * overlay[mask] + 0.6 * np.array(COLOURS[digit])
    for (left, top, right, bottom), digit in zip(instances.bboxes.tolist(), instances.labels):
        box = Rectangle((left, top), right - left, bottom - top, fill=False)
        box.set_edgecolor(COLOURS[digit])
        axis.add_patch(box)
    axis.imshow(overlay)


def draw_segments(axis: plt.Axes, sample: Sample, predicted: bool) -> None:
    """Draw the pixels of digits; background (label 0) and unlabelled pixels show the image."""
    pixels = sample.result.pred_sem_seg if predicted else sample.result.gt_sem_seg
    labels = pixels.data.squeeze(0).numpy()
    overlay = sample.image.copy()
    for digit, colour in enumerate(COLOURS):
        overlay[labels == digit + 1] = colour
    axis.imshow(overlay)


class Task(NamedTuple):
    """A demo: config, main metric, its best value and goal, number of samples, and figure."""

    config: str
    metric: str
    best: float
    goal: float
    num_pictures: int
    draw: Callable[[Path, list[Sample]], None]


TASKS = {
    "cls": Task("vmamba-micro_digits-cls.py", "accuracy/top1", 100, 95, 48, draw_labels),
    "det": Task(
        "mask-rcnn_vmamba-micro_digits-det.py",
        "coco/bbox_mAP_50",
        1,
        0.5,
        8,
        lambda path, samples: draw_pairs(path, samples, draw_instances),
    ),
    "seg": Task(
        "vmamba-micro_upernet_digits-seg.py",
        "mIoU",
        100,
        60,
        8,
        lambda path, samples: draw_pairs(path, samples, draw_segments),
    ),
}


def read_scalars(work_dir: Path, metric: str) -> tuple[list, list]:
    """Read training loss and metric as `(epoch, value)` pairs from all parts of a resumed run."""
    losses, metrics = {}, {}
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for record in map(json.loads, path.read_text().splitlines()):
            if "loss" in record:
                losses[record["step"]] = (record["epoch"], record["loss"])
            elif metric in record:
                metrics[record["step"]] = record[metric]
    # In training records, a step is an iteration, and an epoch ends with its last one.
    length = max((step / epoch for step, (epoch, _) in losses.items()), default=1)
    points = [(step / length, loss) for step, (_, loss) in sorted(losses.items())]
    return points, sorted(metrics.items())


def draw_curves(path: Path, work_dir: Path, task: Task) -> None:
    losses, metrics = read_scalars(work_dir, task.metric)
    with figure(path, 1, 2, size=4) as axes:
        for axis, points, label in zip(axes[0], (losses, metrics), ("training loss", task.metric)):
            axis.plot(*np.array(points).reshape(-1, 2).T, marker=".", markersize=3)
            axis.set(xlabel="epoch", ylabel=label)
            axis.grid(alpha=0.3)
        axes[0, 0].set_ylim(bottom=0)
        axes[0, 1].set_ylim(0, task.best)
        axes[0, 1].axhline(task.goal, color="grey", linestyle="--", label="goal")
        axes[0, 1].legend(loc="lower right")


def predict(cfg: Config, checkpoint: str, count: int) -> list[Sample]:
    """Predict `count` images spread over the test set."""
    init_default_scope(cfg.default_scope)
    if "data_preprocessor" in cfg:
        cfg.model.setdefault("data_preprocessor", cfg.data_preprocessor)
    model = MODELS.build(cfg.model).eval()
    load_checkpoint(model, checkpoint, map_location="cpu", strict=True)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int)
    inputs = [dataset[int(index)] for index in chosen]
    images = [item["inputs"].flip(0).permute(1, 2, 0).numpy() / 255 for item in inputs]
    with torch.no_grad():
        results = model.test_step(pseudo_collate(inputs))
    return [Sample(*pair) for pair in zip(images, results)]


def run(script: str, *arguments: object) -> None:
    """Run one of the tools as a user would, showing the command."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ python {' '.join([f'tools/{script}', *words])}", flush=True)
    subprocess.run([sys.executable, str(ROOT / "tools" / script), *words], check=True)


def is_up_to_date(path: Path, source: Path) -> bool:
    return path.exists() and path.stat().st_mtime >= source.stat().st_mtime


def demo(name: str, options: list[str]) -> None:
    """Run the steps that are not done yet, then print a report."""
    task = TASKS[name]
    work_dir = Path("work_dirs", f"demo-{name}")
    config = ROOT / "configs" / "demo" / task.config
    cfg = cli.load_config(str(config), parse_options(options))
    overrides = ["--cfg-options", *options] if options else []
    run("make_demo_data.py", "data", "--task", name)

    checkpoint = work_dir / f"epoch_{cfg.train_cfg.max_epochs}.pth"
    start = time.monotonic()
    if Path(cli.latest_checkpoint(str(work_dir)) or "").name != checkpoint.name:
        run("train.py", config, "--work-dir", work_dir, "--resume", *overrides)
    seconds = time.monotonic() - start

    metrics = work_dir / "metrics.json"
    if not is_up_to_date(metrics, checkpoint):
        out = ["--out", metrics, "--out-item", "metrics"]
        run("test.py", config, checkpoint, "--work-dir", work_dir / "test", *out, *overrides)
    curves, predictions = work_dir / "curves.png", work_dir / "predictions.png"
    if not is_up_to_date(curves, metrics):
        draw_curves(curves, work_dir, task)
    if not is_up_to_date(predictions, metrics):
        task.draw(predictions, predict(cfg, str(checkpoint), task.num_pictures))

    value = json.loads(metrics.read_text())[task.metric]
    verdict = "reached" if value >= task.goal else "missed"
    trained = f"{seconds:.0f} s" if seconds > 1 else "earlier"
    width = max(len(str(predictions)) + 16, 60)
    print(
        f"\n{'=' * width}",
        f"  {task.metric}   {value:.4g} on images that training never saw",
        f"  {verdict} goal    {task.goal} (of {task.best})",
        f"  trained        {trained}",
        f"  curves         {curves}",
        f"  predictions    {predictions}",
        f"  checkpoint     {checkpoint}",
        "=" * width,
        sep="\n",
    )


def parse_options(options: list[str]) -> dict:
    """Parse `KEY=VALUE` words to a dict as MMEngine does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("options", nargs="*", action=DictAction, default={})
    return parser.parse_args(options).options


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", nargs="?", choices=tuple(TASKS), default="cls", help="default: cls")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of the config to change, e.g. train_cfg.max_epochs=5 randomness.seed=1",
    )
    args = parser.parse_args()
    read_files_safely()
    try:
        demo(args.task, args.cfg_options)
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again to continue", file=sys.stderr)
        return 130
    except subprocess.CalledProcessError as error:
        print(f"\n{Path(error.cmd[1]).name} failed, see above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
