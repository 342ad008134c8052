"""Cost and accuracy of a model as functions of the image size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from .accuracy import main_metrics
from .benchmark import compare
from .flops import count_flops
from .timing import exponent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Quantities that grow with the number of pixels, and their labels.
QUANTITIES = {"macs": "FLOPs (G)", "median_ms": "time (ms)", "peak_mib": "peak memory (MiB)"}


def scale(
    model: nn.Module,
    sizes: Sequence[int],
    metrics: Callable[[int], Mapping[str, float]] | None = None,
    progress: Callable[[], object] = lambda: None,
    **settings: Any,
) -> dict[str, Any]:
    """Measure a model on square images of several sizes.

    Args:
        model: The model of a config (see :func:`mmvssm.analysis.run_network`).
        sizes: Sides of the images in pixels.
        metrics: Function that returns metrics at a size, by name.
        progress: Called after each size, first for metrics, then for time and memory.
        **settings: Further arguments of :func:`mmvssm.analysis.compare`, each list with one entry.

    Returns:
        A dict with ``results``, the entry of :func:`mmvssm.analysis.compare` for each size with
        ``size``, ``macs`` per image and, if requested, ``metrics``; and ``exponents``, the powers
        of the number of pixels with which FLOPs, time and memory grow, if there are several sizes.

    Raises:
        ValueError: If there are no sizes, or the model does not support one.
    """
    if not sizes:
        raise ValueError("sizes must name at least one size")
    # first, because it is cheap and finds sizes that the model does not support
    macs = {size: count_flops(model, (size, size)).macs for size in sizes}
    found = []
    if metrics is not None:
        # before timing training, which updates batch-norm statistics
        for size in sizes:
            found.append(dict(metrics(size)))
            progress()
    results = []
    for i, size in enumerate(sizes):
        (entry,) = compare({"model": model}, (size, size), **settings)
        del entry["model"], entry["shape"]
        entry = dict(size=size, macs=macs[size], **entry)
        entry.pop("ratio", None)
        if found:
            entry["metrics"] = found[i]
        results.append(entry)
        progress()
    measured = [entry for entry in results if "error" not in entry]
    exponents = {}
    if len({entry["size"] for entry in measured}) > 1:
        pixels = [entry["size"] ** 2 for entry in measured]
        for key in QUANTITIES:
            exponents[key] = exponent(pixels, [entry[key] for entry in measured])
    return dict(results=results, exponents=exponents)


def draw_scaling(found: Mapping[str, Any], title: str = "") -> Figure:
    """Draw a panel for each quantity against the side of the image.

    Args:
        found: Result of :func:`scale`.
        title: Title of the figure.
    """
    from matplotlib.figure import Figure

    results = [entry for entry in found["results"] if "error" not in entry]
    panels = {
        name: [(e["size"], e["metrics"][name]) for e in found["results"]]
        for name in main_metrics(found["results"][0].get("metrics", {}))
    }
    for key in QUANTITIES:
        unit = 1e9 if key == "macs" else 1
        panels[key] = [(entry["size"], entry[key] / unit) for entry in results]
    # at most three panels side by side, so that pages do not shrink the text
    rows = -(-len(panels) // 3)
    columns = -(-len(panels) // rows)
    figure = Figure(figsize=(3.2 * columns, 0.3 + 2.7 * rows), layout="constrained", dpi=100)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in places[len(panels) :]:
        axes.remove()
    sides = sorted({entry["size"] for entry in found["results"]})
    for axes, (key, points) in zip(places, panels.items()):
        axes.plot(*zip(*points), "o-", markersize=4)
        axes.set_xscale("log")
        axes.set_xlabel("side of the image (pixels)")
        axes.set_title(QUANTITIES.get(key, key), fontsize=10)
        axes.grid(alpha=0.3, which="both")
        values = [value for _, value in points]
        if key in QUANTITIES and max(values) > 10 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        else:
            room = 1.25 if key in QUANTITIES else 1.05
            axes.set_ylim(bottom=0, top=room * max(values) or None)
        if key in found["exponents"]:
            power = f"pixels^{found['exponents'][key]:.2f}"
            axes.text(0.05, 0.9, power, transform=axes.transAxes, fontsize=9)
        axes.set_xticks(sides, map(str, sides), rotation=90, fontsize=8)
        axes.set_xticks([], minor=True)
    figure.suptitle(title, fontsize=10)
    return figure
