"""Draw the routes along which a layer of a backbone scans its map."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from mmvssm.analysis import (
    Route,
    build_backbone,
    draw_routes,
    name_layers,
    read_image,
    routes_of,
    save_figure,
)
from mmvssm.engine.cli import add_import_option, fail, import_modules, require_place

DESCRIPTION = """\
Draw the routes along which a layer of a backbone scans its map.

A visual state-space layer reads the pixels of its map one after the other, along one or more
routes. The figure has a panel for each route. Pixels are coloured by the time of their visit, from
violet to yellow; unvisited pixels are white. Arrows lead to neighbours and lines to pixels farther
away, dotted if zero tokens come in between. A disc marks the first visit, a square the last one,
and a red star a class token. Over an image, lines have the colours of time instead.
"""
EXAMPLES = """\
examples:
  python tools/analysis_tools/routes.py vmamba-tiny-s1l8 --out cross.png
  python tools/analysis_tools/routes.py local-vmamba-tiny --layer 1 --grid 7 10 --out windows.png
  python tools/analysis_tools/routes.py configs/demo/vim-micro_digits-cls.py --out vim.png
  python tools/analysis_tools/routes.py vmamba-tiny-s1l8 msvmamba-tiny vim-tiny --image photo.jpg \\
      --columns 8 --out families.png
  python tools/analysis_tools/routes.py my-vmamba-tiny --import my_vmamba --out mine.png

The name of a variant is FAMILY-ARCH, as in its configs; an unknown name lists all variants. Layers
are counted through all stages. Routes do not depend on the weights.
"""
PICTURES = (".png", ".pdf", ".svg")
_PIXELS = 40  # pixels of an image per side of a map's pixel


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="a variant such as vmamba-tiny-s1l8, or a config file (.py); each gets a row",
    )
    parser.add_argument(
        "--layer",
        type=int,
        nargs="+",
        metavar="N",
        help="index of the layer; one for all models, or one each (default: the first that scans)",
    )
    parser.add_argument(
        "--grid",
        type=int,
        nargs=2,
        default=(8, 8),
        metavar=("H", "W"),
        help="rows and columns of the map (default: 8 8)",
    )
    parser.add_argument("--image", metavar="FILE", help="draw the routes over this image")
    parser.add_argument(
        "--columns",
        type=int,
        metavar="N",
        help="panels in a row; several models then share rows where they fit "
        "(default: 4 for one model, a row for each of several)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.png",
        help=f"file to write ({', '.join(PICTURES)})",
    )
    add_import_option(parser, "routes or a family")
    args = parser.parse_args()
    if args.out.suffix not in PICTURES:
        parser.error(f"--out must end in {' or '.join(PICTURES)}, got {str(args.out)!r}")
    if args.columns is not None and args.columns < 1:
        parser.error(f"--columns must be at least 1, got {args.columns}")
    if args.layer is None:
        args.layer = [None]
    if len(args.layer) == 1:
        args.layer *= len(args.models)
    if len(args.layer) != len(args.models):
        parser.error(f"--layer takes one number or one for each model, got {len(args.layer)}")
    return args


def read_routes(model: str, layer: int | None, grid: tuple[int, int]) -> tuple[str, list[Route]]:
    """Return the class of a model's backbone, and the routes of the requested layer."""
    backbone = build_backbone(model)
    if layer is None:
        layer = next((i for i, scans in enumerate(name_layers(backbone).values()) if scans), 0)
    return type(backbone).__name__, routes_of(backbone, layer, *grid)


def main() -> None:
    args = parse_args()
    if find_spec("matplotlib") is None:
        fail("this tool needs matplotlib: pip install matplotlib")
    require_place(args.out)
    import_modules(args.modules)
    try:
        read = [read_routes(*pair, args.grid) for pair in zip(args.models, args.layer)]
        size = [side * _PIXELS for side in args.grid]
        image = None if args.image is None else read_image(args.image, size).numpy()
    except (FileNotFoundError, ValueError) as error:
        fail(str(error))
    classes = [name for name, _ in read]
    found = {Path(model).stem: routes for model, (_, routes) in zip(args.models, read)}
    if len(found) > 1:
        # the class says enough unless two models share it
        labels = classes if len(set(classes)) == len(found) else found
        labelled = dict(zip(labels, found.values()))
        figure = draw_routes(labelled, image=image, columns=args.columns)
    else:
        ((name, routes),) = found.items()
        figure = draw_routes(routes, name, image, args.columns)
    try:
        save_figure(figure, args.out)
    except OSError as error:
        fail(f"cannot write: {error}")
    for name, routes in found.items():
        prefix = f"{name}, " if len(found) > 1 else ""
        for route in routes:
            size = f"{route.size[0]}x{route.size[1]}"
            print(f"{prefix}{route.name}: {len(route.steps)} steps over {size}")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
