"""Show which scan directions LocalMamba's search has chosen, and write them for a config."""

from __future__ import annotations

import argparse
import re
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mmvssm.checkpoint import read_checkpoint, select_weights
from mmvssm.engine.cli import fail, require_place
from mmvssm.files import atomic_write
from mmvssm.models.layers import SEARCH_DIRECTIONS, top_directions

DESCRIPTION = """\
Show which scan directions LocalMamba's search has chosen, and write them for a config.

A network that was trained with directions='search' scans in eight directions in every layer and
learns how much each of them counts. This tool reads these weights from a checkpoint of
LocalVMamba or LocalVim (ours or a raw one of the LocalMamba project), makes probabilities of
them, prints them layer by layer with the largest ones marked, and prints the table of directions
that the final network, trained anew, is built with.
"""
EXAMPLES = """\
the whole way, on the demo data (tools/make_demo_data.py data --task cls):
  python tools/train.py configs/demo/local-vmamba-micro-search_digits-cls.py
  python tools/analysis_tools/search_result.py \\
      work_dirs/local-vmamba-micro-search_digits-cls/epoch_8.pth \\
      --out found.py --picture found.png

then a config of the final network, beside found.py:
  _base_ = ["PATH/TO/configs/demo/local-vmamba-micro_digits-cls.py", "found.py"]
  model = dict(backbone=dict(directions=_base_.directions))

Checkpoints are read safely: nothing that stands in the file is run.
"""
PICTURES = (".png", ".pdf", ".svg")
# The search's weights in our networks and in those of the LocalMamba project.
KEY = re.compile(r"(^|\.)(merge|multi_scan)\.weights$")


def parse_args() -> argparse.Namespace:
    count = len(SEARCH_DIRECTIONS)
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file of the trained super-net")
    parser.add_argument(
        "--top",
        type=int,
        default=4,
        metavar="K",
        help=f"directions per layer to choose, 1 to {count} (default: 4, as published)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.py",
        help="write the table as `directions = [...]`, to be inherited by a config",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE.png",
        help=f"draw the probabilities, chosen ones marked ({', '.join(PICTURES)})",
    )
    args = parser.parse_args()
    if args.top not in range(1, count + 1):
        parser.error(f"--top must be from 1 to {count}, got {args.top}")
    for option, path, suffixes in (
        ("--out", args.out, (".py",)),
        ("--picture", args.picture, PICTURES),
    ):
        if path is not None and path.suffix not in suffixes:
            parser.error(f"{option} must end in {' or '.join(suffixes)}, got {str(path)!r}")
    return args


def read_probabilities(path: str) -> Tensor:
    """Probabilities ``(layers, directions)`` of a super-net's checkpoint, in network order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, or not one of a super-net.
    """
    weights = select_weights(read_checkpoint(path)).tensors
    # by the numbers of stage and block, whatever the order in the file
    layers = sorted(
        ([int(number) for number in re.findall(r"\d+", key)], key)
        for key in weights
        if KEY.search(key)
    )
    if not layers:
        raise ValueError(
            f"{path!r} has no search weights (names that end in 'merge.weights'): it is no"
            f" checkpoint of a network with directions='search'; its {len(weights)} weights"
            f" begin with {next(iter(weights))!r}"
        )
    for _, key in layers:
        if weights[key].numel() != len(SEARCH_DIRECTIONS) or not weights[key].isfinite().all():
            raise ValueError(
                f"{path!r}: {key!r} must hold {len(SEARCH_DIRECTIONS)} finite numbers,"
                f" got {weights[key].flatten().tolist()[:10]}"
            )
    return torch.stack([weights[key].flatten().double() for _, key in layers]).softmax(1)


def print_table(probabilities: Tensor, chosen: list[list[int]]) -> None:
    """Print a line per layer; what was chosen is marked by a star."""
    entropy = float(torch.special.entr(probabilities).sum(1).mean())
    even = torch.tensor(len(SEARCH_DIRECTIONS)).log()
    table = Table(
        title=f"Probabilities of the directions (mean entropy {entropy:.3f}, even: {even:.3f})",
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.add_column("layer", justify="right")
    for name in SEARCH_DIRECTIONS:
        table.add_column(f"{name} ", justify="right", no_wrap=True)
    for layer, row in enumerate(probabilities.tolist()):
        cells = [
            f"[bold]{value:.3f}*[/bold]" if i in chosen[layer] else f"{value:.3f} "
            for i, value in enumerate(row)
        ]
        table.add_row(str(layer), *cells)
    Console().print(table)


def as_config(chosen: list[list[int]]) -> str:
    """The chosen directions as Python text."""
    lines = []
    for layer, row in enumerate(chosen):
        names = ", ".join(f'"{SEARCH_DIRECTIONS[i]}"' for i in row)
        lines.append(f"    [{names}],  # layer {layer}\n")
    return f"directions = [\n{''.join(lines)}]\n"


def draw(path: Path, probabilities: Tensor, chosen: list[list[int]]) -> None:
    """Draw layers against directions, a dot on what was chosen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    layers, count = probabilities.shape
    figure, axes = pyplot.subplots(figsize=(6.4, 1.8 + 0.28 * layers), layout="constrained")
    image = axes.imshow(probabilities.numpy(), cmap="viridis", vmin=0, aspect="auto")
    figure.colorbar(image, ax=axes, label="probability")
    dots = [(i, layer) for layer, row in enumerate(chosen) for i in row]
    axes.scatter(*zip(*dots), s=30, color="white", edgecolors="black")
    axes.set_xticks(range(count), SEARCH_DIRECTIONS, rotation=45, ha="right")
    axes.set_yticks(range(layers))
    axes.set_ylabel("layer")
    axes.set_title(f"Searched directions, the {len(chosen[0])} likeliest dotted")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    args = parse_args()
    for path in (args.out, args.picture):
        if path is not None:
            require_place(path)
    if args.picture is not None and find_spec("matplotlib") is None:
        fail("--picture needs matplotlib: pip install matplotlib")
    try:
        probabilities = read_probabilities(args.checkpoint)
    except (FileNotFoundError, ValueError) as error:
        fail(str(error))
    chosen = [top_directions(row, args.top) for row in probabilities]
    print_table(probabilities, chosen)
    config = as_config(chosen)
    print(f"\n{config}")
    try:
        if args.out is not None:
            note = f"# The {args.top} likeliest directions of each layer in {args.checkpoint}.\n"
            atomic_write(args.out, lambda part: part.write_text(note + config))
            print(f"wrote {args.out}")
        if args.picture is not None:
            atomic_write(args.picture, lambda part: draw(part, probabilities, chosen))
            print(f"wrote {args.picture}")
    except OSError as error:
        fail(f"cannot write: {error}")


if __name__ == "__main__":
    main()
