"""Draw the routes along which a layer of a backbone scans its map."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from mmvssm.analysis import build_backbone, draw_routes, routes_of, save_figure
from mmvssm.engine.cli import add_import_option, fail, import_modules, require_place

DESCRIPTION = """\
Draw the routes along which a layer of a backbone scans its map.

A visual state-space layer reads the pixels of its map one after the other, along one or more
routes. The picture has a panel for each: pixels are coloured by the time of their visit, from
violet to yellow, and stay white if they are not visited; arrows lead from pixel to pixel, lines
to pixels farther away, dotted ones where zero tokens come between; a disc marks the first visit,
a square the last one and a red star a class token.
"""
EXAMPLES = """\
examples:
  python tools/analysis_tools/routes.py vmamba-tiny-s1l8 --out cross.png
  python tools/analysis_tools/routes.py local-vmamba-tiny --layer 1 --grid 7 10 --out windows.png
  python tools/analysis_tools/routes.py configs/demo/vim-micro_digits-cls.py --out vim.png
  python tools/analysis_tools/routes.py my-vmamba-tiny --import my_vmamba --out mine.png

A variant is named as its configs are, FAMILY-ARCH; an unknown name lists all of them. Layers count
through all stages. Weights play no part: routes are what a layer is built with.
"""
PICTURES = (".png", ".pdf", ".svg")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a variant such as vmamba-tiny-s1l8, or a config file (.py)"
    )
    parser.add_argument("--layer", type=int, default=0, metavar="N", help="default: 0, the first")
    parser.add_argument(
        "--grid",
        type=int,
        nargs=2,
        default=(8, 8),
        metavar=("H", "W"),
        help="rows and columns of the map that is drawn (default: 8 8)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.png",
        help=f"the picture to write ({', '.join(PICTURES)})",
    )
    add_import_option(parser, "routes or a family")
    args = parser.parse_args()
    if args.out.suffix not in PICTURES:
        parser.error(f"--out must end in {' or '.join(PICTURES)}, got {str(args.out)!r}")
    return args


def main() -> None:
    args = parse_args()
    if find_spec("matplotlib") is None:
        fail("this needs matplotlib: pip install matplotlib")
    require_place(args.out)
    import_modules(args.modules)
    try:
        found = routes_of(build_backbone(args.model), args.layer, *args.grid)
    except (FileNotFoundError, ValueError) as error:
        fail(str(error))
    name = Path(args.model).stem
    figure = draw_routes(found, f"{name}, layer {args.layer}")
    try:
        save_figure(figure, args.out)
    except OSError as error:
        fail(f"cannot write: {error}")
    for route in found:
        print(f"{route.name}: {len(route.steps)} steps over {route.size[0]}x{route.size[1]}")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
