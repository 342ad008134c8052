"""Training curves from the logs of MMEngine and of the authors' own code."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf"
#: A number and, in parentheses, its running mean.
_MEAN = rf"\s*(?:{_NUMBER})%? \(\s*({_NUMBER})%?\)"
_PAIR = re.compile(rf"([\w./-]+): ({_NUMBER})(?=\s|$)")
# MMEngine's and mmcv's text: `Epoch(train) [3][50/200]`, `Iter [50/160000]`
_STEP = re.compile(
    r"(?P<unit>Epoch|Iter)(?:\s?\((?P<mode>train|val|test)\))?\s+"
    r"(?:\[\s*(?P<epoch>\d+)\])?\[\s*(?P<step>\d+)(?:/(?P<total>\d+))?\]\s+(?P<rest>.*)"
)
# Swin Transformer's text (VMamba, MSVMamba)
_SWIN_TRAIN = re.compile(rf"Train: \[(\d+)/\d+\]\[(\d+)/(\d+)\].*?\bloss{_MEAN}")
_SWIN_TEST = re.compile(rf"\* Acc@1 ({_NUMBER}) Acc@5 ({_NUMBER})")
_SWIN_BEST = re.compile(r"Max accuracy( ema)?:")
# timm's text (MambaVision): `Train: 0 [  50/1251 (  4%)]  Loss: ...`, `Test (EMA): [  48/48] ...`,
# and that of LocalMamba's code (also EfficientVMamba), which states the epoch of a test
_TIMM_TRAIN = re.compile(rf"Train: (\d+) \[\s*(\d+)/(\d+)[^]]*\]\s+Loss:{_MEAN}")
_TIMM_TEST = re.compile(
    rf"Test ?(\(EMA\))?:(?: \d+)? \[\s*(\d+)/(\d+)\].*?\sLoss:{_MEAN}"
    rf"\s+(?:Acc@1|Top-1):{_MEAN}\s+(?:Acc@5|Top-5):{_MEAN}"
)
_TESTED = ("test_loss", "accuracy/top1", "accuracy/top5")
#: Entries of logs that are neither losses nor metrics.
_OTHERS = re.compile(r"(^|_)(time|eta|memory|epoch|iter|step|mode|lr|momentum)$|^n_parameters$")


@dataclass(frozen=True)
class Curve:
    """A quantity over the course of training.

    Attributes:
        name: Name in the log; for the authors' classifiers ``loss``, ``accuracy/top1``,
            ``accuracy/top5``, and ``ema/...`` for averaged weights.
        unit: Unit of ``steps``: ``'epoch'`` (with fractions) or ``'iter'``.
        steps: Position of each value.
        values: The values.
    """

    name: str
    unit: str
    steps: tuple[float, ...]
    values: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the curve in plain types for JSON; values that are not finite become None."""
        values = [value if math.isfinite(value) else None for value in self.values]
        return {**asdict(self), "values": values}


def read_curves(path: str | Path) -> dict[str, Curve]:
    """Return the curves of a training log by name.

    The supported formats are MMEngine's ``vis_data/scalars.json`` and text log; mmcv's text log and
    ``.log.json``; the text log of Swin Transformer's code (VMamba, MSVMamba); the ``log.txt`` of
    DeiT's code (Vim), with a JSON object per line; the text log and ``summary.csv`` of timm
    (MambaVision); and the text log and ``metrics.csv`` of LocalMamba's code (also EfficientVMamba).
    The CSV files have only one accuracy, that of the averaged weights if there are any.

    Args:
        path: A log, or the work folder of MMEngine runs, whose logs are read in order: a resumed
            run replaces the values of earlier runs after the point where it resumed.

    Raises:
        FileNotFoundError: If there is no such file, or the folder has no logs.
        ValueError: If it holds no curves in a known format.
    """
    path = Path(path)
    files = sorted(path.glob("*/vis_data/scalars.json")) if path.is_dir() else [path]
    if not path.exists():
        raise FileNotFoundError(f"there is no log {str(path)!r}")
    if not files:
        raise FileNotFoundError(f"the folder {str(path)!r} has no */vis_data/scalars.json")
    curves: dict[tuple[str, str], dict[float, float]] = {}
    for file in files:
        begun = set()
        for unit, step, name, value in _points(file):
            points = curves.setdefault((name, unit), {})
            if (name, unit) not in begun:
                begun.add((name, unit))
                for later in [old for old in points if old >= step]:
                    del points[later]
            points[step] = value
    found: dict[str, Curve] = {}
    for (name, unit), points in curves.items():
        if name not in found:
            found[name] = Curve(name, unit, tuple(points), tuple(points.values()))
    if not found:
        raise ValueError(f"{str(path)!r} holds no curves in a known log format")
    return found


def _points(file: Path) -> Iterator[tuple[str, float, str, float]]:
    """Yield unit, step, name and value of every number in a log."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        text = list(lines)
    entries = [entry for line in text if line.startswith("{") and (entry := _entry(line))]
    if entries:
        yield from _of_json(entries)
    elif text and text[0].startswith("epoch,"):
        yield from _of_table(text)
    elif any(_SWIN_TRAIN.search(line) for line in text):
        yield from _of_swin(text)
    elif any(_TIMM_TRAIN.search(line) for line in text):
        yield from _of_timm(text)
    else:
        yield from _of_mmengine(text)


def _entry(line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # the last line of a run that was killed
        return {}


def _of_json(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float, str, float]]:
    trained = [entry for entry in entries if "loss" in entry]
    iterations = [entry["iter"] for entry in trained]
    # mmcv's iterations restart in every epoch, MMEngine's do not
    anew = any(later <= earlier for earlier, later in pairwise(iterations))
    by_epoch = anew or (
        all("epoch" in e for e in trained) and not any("mode" in e for e in trained)
    )
    # iterations per epoch; the last ones are not logged, so this is a lower bound
    length = max((e["iter"] / (1 if anew else e["epoch"]) for e in trained if by_epoch), default=1)
    for entry in entries:
        if "train_loss" in entry or "test_acc1" in entry:  # DeiT's, whose first epoch is 0
            unit, step = "epoch", entry["epoch"] + 1
        elif not by_epoch:
            unit, step = "iter", entry.get("step", entry.get("iter"))
        elif "loss" in entry:
            unit, step = "epoch", entry["iter"] / length + (entry["epoch"] - 1 if anew else 0)
        else:
            unit, step = "epoch", entry.get("epoch", entry.get("step"))
        if step is None:  # mmcv's first line, which describes the environment
            continue
        for name, value in entry.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and not _OTHERS.search(name):
                yield unit, float(step), _NAMES.get(name, name), float(value)


_NAMES = {
    "train_loss": "loss",
    "eval_loss": "test_loss",
    **dict.fromkeys(("test_acc1", "eval_top1", "top1"), "accuracy/top1"),
    **dict.fromkeys(("test_acc5", "eval_top5", "top5"), "accuracy/top5"),
}


def _of_table(text: Sequence[str]) -> Iterator[tuple[str, float, str, float]]:
    """Read a table whose epochs count from 0; a resumed run writes its header again."""
    names: list[str] = []
    for row in csv.reader(text):
        if row[:1] == ["epoch"]:
            names = row
        elif len(row) == len(names):  # else the last row of a killed run
            for name, value in zip(names, row):
                if not _OTHERS.search(name):
                    yield "epoch", float(row[0]) + 1, _NAMES.get(name, name), float(value)


def _of_swin(text: Sequence[str]) -> Iterator[tuple[str, float, str, float]]:
    """Read Swin's text log, in which the line after a test result says which weights it is of."""
    epoch, pending = 0.0, None
    for line in text:
        if match := _SWIN_TRAIN.search(line):
            number, step, total = map(int, match.groups()[:3])
            epoch = number + 1.0
            # both count from 0; the value is the running mean of the epoch
            yield "epoch", number + (step + 1) / total, "loss", float(match[4])
        elif match := _SWIN_TEST.search(line):
            pending = float(match[1]), float(match[2])
        elif pending and (match := _SWIN_BEST.search(line)):
            prefix = "ema/" if match[1] else ""
            for top, value in zip((1, 5), pending):
                yield "epoch", epoch, f"{prefix}accuracy/top{top}", value
            pending = None


def _of_timm(text: Sequence[str]) -> Iterator[tuple[str, float, str, float]]:
    """Read timm's text log, whose values are running means, complete at the last batch."""
    epoch = 0.0
    for line in text:
        if match := _TIMM_TRAIN.search(line):
            number, step, total = map(int, match.groups()[:3])
            epoch = number + 1.0
            yield "epoch", number + (step + 1) / total, "loss", float(match[4])
        # timm states the last index, LocalMamba's code the number of batches
        elif (match := _TIMM_TEST.search(line)) and int(match[2]) + 1 >= int(match[3]):
            prefix = "ema/" if match[1] else ""
            for name, value in zip(_TESTED, match.groups()[3:]):
                yield "epoch", epoch, prefix + name, float(value)


def _of_mmengine(text: Sequence[str]) -> Iterator[tuple[str, float, str, float]]:
    now = 0.0
    for line in text:
        match = _STEP.search(line)
        if match is None:
            continue
        unit = "epoch" if match["unit"] == "Epoch" else "iter"
        pairs = [(n, float(v)) for n, v in _PAIR.findall(match["rest"].replace(",", " "))]
        trained = match["mode"] == "train" or (match["mode"] is None and "loss" in dict(pairs))
        if unit == "epoch":
            inside = int(match["step"]) / int(match["total"]) if trained else 1
            step = int(match["epoch"]) - 1 + inside
        elif trained:
            step = now = float(match["step"])
        else:
            step = now
        for name, value in pairs:
            if not _OTHERS.search(name):
                yield unit, step, name, value


def draw_curves(logs: Mapping[str, Mapping[str, Curve]], names: Sequence[str]) -> Figure:
    """Draw a panel for each quantity, with a line for each training run.

    Args:
        logs: Results of :func:`read_curves` by name of the training run.
        names: Quantities to draw.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(names), 3.4), layout="constrained", dpi=100)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        units = set()
        for title, curves in logs.items():
            if name in curves:
                curve = curves[name]
                units.add(curve.unit)
                marker = "." if len(curve.values) < 30 else ""
                axes.plot(curve.steps, curve.values, marker=marker, linewidth=1, label=title)
        axes.set_xlabel(" or ".join(sorted(units)))
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure
