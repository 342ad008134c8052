"""Measure the effective receptive fields of backbones, before and after training."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from mmvssm.analysis import (
    Pixels,
    ReceptiveField,
    check_outputs,
    choose_images,
    draw_receptive_fields,
    images_of,
    load_backbone,
    noise_images,
    receptive_field,
    write_outputs,
)
from mmvssm.analysis.options import (
    add_device_option,
    add_out_option,
    add_size_option,
    to_numbers,
)
from mmvssm.analysis.receptive_field import POWER, THRESHOLDS
from mmvssm.engine.cli import (
    add_import_option,
    fail,
    import_modules,
    require_checkpoint,
)
from mmvssm.models.layers import ForeignWeightsError

DESCRIPTION = """\
Measure the effective receptive fields of backbones, before and after training.

The field shows on which pixels of an image the centre of a backbone's last map depends: the
positive part of the gradient of its channels, summed over the colours and averaged over images. The
figure has a column for each model, with a row for its weights before training and one for those of
its checkpoint; brightness is the contribution to the power of --power, which makes weak ones
visible. The table lists the squares around the centre that contain 20, 30, 50 and 99 percent of all
contributions.
"""
EXAMPLES = """\
examples:
  python tools/analysis_tools/get_erf.py vmamba-tiny-s1l8 vim-tiny --size 224 --num 4 \\
      --out erf.png erf.json
  python tools/analysis_tools/get_erf.py vmamba-tiny-s1l8=mmvssm://vmamba-tiny-s1l8 \\
      my_config.py=work_dirs/my_config/epoch_300.pth \\
      --images data/imagenet/val --size 1024 --out erf.png erf.svg erf.json

The name of a variant is FAMILY-ARCH, as in its configs; an unknown name lists all variants.
VMamba's figures use 50 validation images of 1024x1024 pixels. Without --images the input is noise,
which is less informative for a trained network.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL[=CHECKPOINT]",
        help="a variant such as vmamba-tiny-s1l8, or a config file (.py) of any of the three"
        " libraries; optionally with its weights after training, a file or mmvssm://NAME",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of images")
    parser.add_argument(
        "--num", type=int, default=50, metavar="N", help="images to average over (default: 50)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed for images and random weights (default: 0)"
    )
    parser.add_argument(
        "--power", type=float, default=POWER, help=f"exponent of the figure (default: {POWER})"
    )
    add_size_option(parser)
    add_device_option(parser)
    add_out_option(parser)
    add_import_option(parser, "routes or a family")
    args = parser.parse_args()
    if args.num < 1:
        parser.error(f"--num must be at least 1, got {args.num}")
    if not args.power > 0:
        parser.error(f"--power must be positive, got {args.power}")
    args.models = [tuple(model.split("=", 1)) for model in args.models]
    return args


def build(args: argparse.Namespace, name: str, checkpoint: str | None) -> nn.Module:
    """Build one model with one set of weights."""
    torch.manual_seed(args.seed)
    return load_backbone(name, checkpoint)


def measure(
    args: argparse.Namespace, name: str, checkpoint: str | None, backbone: nn.Module
) -> ReceptiveField:
    """Measure the receptive field of a backbone, with a progress bar."""
    if args.images is None:
        images, count = noise_images(args.num, args.size, args.seed), args.num
    else:
        paths = choose_images(args.images, args.num, args.seed)
        images, count = images_of(paths, args.size, Pixels.of(name)), len(paths)
    what = f"{Path(name).stem}, {'random weights' if checkpoint is None else 'trained'}"
    bar = track(images, what, total=count, console=Console(stderr=True), transient=True)
    return receptive_field(backbone.to(args.device), bar)


def describe(field: ReceptiveField) -> dict[str, dict | None]:
    """Return the square for each threshold."""
    areas = {share: field.area(share) for share in THRESHOLDS}
    return {str(share): area and vars(area) for share, area in areas.items()}


def main() -> None:
    args = parse_args()
    try:
        check_outputs(args.out)
    except ValueError as error:
        fail(str(error))
    if args.images is not None and not args.images.is_dir():
        fail(f"there is no folder {str(args.images)!r}")
    import_modules(args.modules)
    for _, *checkpoint in args.models:
        if checkpoint:
            require_checkpoint(checkpoint[0])
    states = ["before training", "after training"]
    if all(len(model) == 1 for model in args.models):
        states = states[:1]
    fields: list[list[ReceptiveField | None]] = [[] for _ in states]
    found = []
    try:
        # find checkpoints that do not fit before measuring for an hour
        for name, *checkpoint in args.models:
            build(args, name, *checkpoint or [None])
        for name, *checkpoint in args.models:
            for state, weights, line in zip(states, (None, *checkpoint, None), fields):
                if state == "after training" and not checkpoint:
                    line.append(None)
                    continue
                field = measure(args, name, weights, build(args, name, weights))
                line.append(field)
                found.append(dict(model=name, checkpoint=weights, areas=describe(field),
                                  images=field.num_images, skipped=field.num_skipped,
                                  contribution=to_numbers(reduced(field))))  # fmt: skip
                print(f"{name}, {state}: {squares(field)}")
    except (OSError, ValueError, ForeignWeightsError) as error:
        fail(str(error))
    columns = [Path(name).stem for name, *_ in args.models]
    data = dict(size=args.size, source=str(args.images or "noise"), fields=found)
    try:
        write_outputs(
            args.out, data, lambda: draw_receptive_fields(fields, columns, states, args.power)
        )
    except OSError as error:
        fail(f"cannot write: {error}")
    print(f"wrote {', '.join(map(str, args.out))}")


def reduced(field: ReceptiveField) -> torch.Tensor:
    """Average contributions over a grid of at most 64x64 cells."""
    grid = [min(side, 64) for side in field.contribution.shape]
    return torch.nn.functional.adaptive_avg_pool2d(field.contribution[None, None], grid)[0, 0]


def squares(field: ReceptiveField) -> str:
    """Describe the squares that contain the contributions."""
    words = []
    for share in THRESHOLDS:
        area = field.area(share)
        inside = "no square" if area is None else f"{area.side}x{area.side}"
        words.append(f"{share:.0%} within {inside}")
    skipped = f" ({field.num_skipped} images skipped)" if field.num_skipped else ""
    return ", ".join(words) + skipped


if __name__ == "__main__":
    main()
