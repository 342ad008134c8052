"""Show the scan directions found by LocalMamba's search, and write them for a config."""

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
Show the scan directions found by LocalMamba's search, and write them for a config.

A network trained with directions='search' scans in eight directions in every layer and learns a
weight for each of them. This tool reads these weights from a checkpoint of LocalVMamba or LocalVim
(ours, or an original one of the LocalMamba project), converts them to probabilities, prints these
for each layer with the largest ones marked, and prints the table of directions for the final
network, which is then trained from scratch.
"""
EXAMPLES = """\
a complete example on the demo data (tools/make_demo_data.py data --task cls):
  python tools/train.py configs/demo/local-vmamba-micro-search_digits-cls.py
  python tools/analysis_tools/search_result.py \\
      work_dirs/local-vmamba-micro-search_digits-cls/epoch_8.pth \\
      --out found.py --picture found.png

then write a config of the final network in the same folder as found.py:
  _base_ = ["PATH/TO/configs/demo/local-vmamba-micro_digits-cls.py", "found.py"]
  model = dict(backbone=dict(directions=_base_.directions))

No code of the checkpoint is run.
"""
PICTURES = (".png", ".pdf", ".svg")
# Names of the search weights in our networks and in those of the LocalMamba project.
KEY = re.compile(r"(^|\.)(merge|multi_scan)\.weights$")


def parse_args() -> argparse.Namespace:
    count = len(SEARCH_DIRECTIONS)
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="checkpoint of the trained super-network"
    )
    parser.add_argument(
        "--top",
        type=int,
        default=4,
        metavar="K",
        help=f"number of directions per layer, 1 to {count} (default: 4, as published)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.py",
        help="write the table as `directions = [...]`, for a config to inherit",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE.png",
        help=f"draw the probabilities, with the chosen ones marked ({', '.join(PICTURES)})",
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
    """Read the probabilities ``(layers, directions)`` of a super-network, in network order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint of a super-network.
    """
    weights = select_weights(read_checkpoint(path)).tensors
    # sorted by stage and block, since the order in the file is arbitrary
    layers = sorted(
        ([int(number) for number in re.findall(r"\d+", key)], key)
        for key in weights
        if KEY.search(key)
    )
    if not layers:
        raise ValueError(
            f"{path!r} has no search weights (names that end in 'merge.weights'), so it is not a"
            f" checkpoint of a network with directions='search'; the first of its"
            f" {len(weights)} weights is {next(iter(weights))!r}"
        )
    for _, key in layers:
        if weights[key].numel() != len(SEARCH_DIRECTIONS) or not weights[key].isfinite().all():
            raise ValueError(
                f"{path!r}: {key!r} must hold {len(SEARCH_DIRECTIONS)} finite numbers,"
                f" got {weights[key].flatten().tolist()[:10]}"
            )
    return torch.stack([weights[key].flatten().double() for _, key in layers]).softmax(1)


def print_table(probabilities: Tensor, chosen: list[list[int]]) -> None:
    """Print a line per layer, with a star on the chosen directions."""
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
    """Return the chosen directions as Python source."""
    lines = []
    for layer, row in enumerate(chosen):
        names = ", ".join(f'"{SEARCH_DIRECTIONS[i]}"' for i in row)
        lines.append(f"    [{names}],  # layer {layer}\n")
    return f"directions = [\n{''.join(lines)}]\n"


def draw(path: Path, probabilities: Tensor, chosen: list[list[int]]) -> None:
    """Draw layers against directions, with a dot on the chosen ones."""
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
    axes.set_title(f"Searched directions, the {len(chosen[0])} most likely marked")
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
            note = f"# The {args.top} most likely directions of each layer in {args.checkpoint}.\n"
            atomic_write(args.out, lambda part: part.write_text(note + config))
            print(f"wrote {args.out}")
        if args.picture is not None:
            atomic_write(args.picture, lambda part: draw(part, probabilities, chosen))
            print(f"wrote {args.picture}")
    except OSError as error:
        fail(f"cannot write: {error}")


if __name__ == "__main__":
    main()
