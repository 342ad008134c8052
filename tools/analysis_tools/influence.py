"""Draw the contributions of a layer's pixels to one of them, by route."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmvssm.analysis import (
    KINDS,
    InfluenceMap,
    Pixels,
    check_outputs,
    draw_influence,
    influence,
    load_backbone,
    read_image,
    write_outputs,
)
from mmvssm.analysis.options import (
    add_device_option,
    add_model_option,
    add_out_option,
    add_size_option,
    to_numbers,
)
from mmvssm.engine.cli import (
    add_import_option,
    fail,
    import_modules,
    require_checkpoint,
)
from mmvssm.models.layers import ForeignWeightsError

DESCRIPTION = """\
Draw the contributions of the pixels of a layer's map to one of them, by route.

For given steps, B and C, a scan is linear in its input, so each output is a weighted sum of the
inputs before it on the route. Papers call these weights attention maps. The figure has a panel for
each route of the layer and one for their sum: red pixels raise the output of the query, blue pixels
lower it; each panel has its own scale. A box marks the query; a star is a class token, in the
colour of its contribution. Contributions are those to the output of the scan, averaged over the
channels.
"""
EXAMPLES = f"""\
kinds of maps (d are the steps, S their sum along the route times A, q the query):
{chr(10).join(f"  {kind:<11} {words}" for kind, words in KINDS.items())}

examples:
  python tools/analysis_tools/influence.py vmamba-tiny-s1l8 dog.jpg --size 512 --layer 6 \\
      --checkpoint mmvssm://vmamba-tiny-s1l8 --query 0.4 0.6 --out dog.png dog.json
  python tools/analysis_tools/influence.py configs/demo/vim-micro_digits-cls.py \\
      data/digits-cls/val/5/0033.png --size 32 \\
      --checkpoint work_dirs/vim-micro_digits-cls/epoch_15.pth --layer 3 --query-token 0 \\
      --out token.png

The name of a variant is FAMILY-ARCH, as in its configs; an unknown name lists all variants. Layers
are counted through all stages. Without a checkpoint the weights are random. Layers that scan in
windows show zeros outside of the query's window.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_option(parser)
    parser.add_argument("image", metavar="IMAGE", help="the image")
    parser.add_argument(
        "--checkpoint", help="file, URL or mmvssm://NAME with the weights (default: random weights)"
    )
    parser.add_argument("--layer", type=int, default=0, metavar="N", help="default: 0, the first")
    query = parser.add_mutually_exclusive_group()
    query.add_argument(
        "--query",
        type=float,
        nargs=2,
        default=(0.5, 0.5),
        metavar=("Y", "X"),
        help="position of the query as fractions of height and width (default: 0.5 0.5)",
    )
    query.add_argument(
        "--query-token", type=int, metavar="N", help="use the class token with this index as query"
    )
    parser.add_argument(
        "--kind", choices=KINDS, default="influence", help="kind of map (default: influence)"
    )
    add_size_option(parser)
    add_device_option(parser)
    add_out_option(parser)
    add_import_option(parser, "routes or a family")
    return parser.parse_args()


def describe(part: InfluenceMap) -> dict:
    """Return the numbers of a map."""
    values = to_numbers(part.values)
    return dict(name=part.name, query=part.query, values=values, class_tokens=part.cls_values)


def main() -> None:
    args = parse_args()
    try:
        check_outputs(args.out)
    except ValueError as error:
        fail(str(error))
    import_modules(args.modules)
    if args.checkpoint is not None:
        require_checkpoint(args.checkpoint)
    query = args.query if args.query_token is None else args.query_token
    try:
        pixels = Pixels.of(args.model)
        image = read_image(args.image, args.size, pixels.rgb)
        backbone = load_backbone(args.model, args.checkpoint).to(args.device)
        x = pixels.normed(image).to(args.device)
        found = influence(backbone, x, args.layer, query, args.kind)
    except (OSError, ValueError, ForeignWeightsError) as error:
        fail(str(error))
    for part in (*found.routes, found.merged):
        height, width = part.values.shape
        share = part.values.abs().sum() and part.values.abs().max() / part.values.abs().sum()
        print(f"{part.name}: {height}x{width} pixels, the largest contributes {share:.1%}")
    data = dict(
        model=args.model, checkpoint=args.checkpoint, layer=args.layer, kind=args.kind,
        routes=[describe(part) for part in found.routes], merged=describe(found.merged),
    )  # fmt: skip
    title = f"{Path(args.model).stem}, layer {args.layer}: {args.kind}"
    shown = image if pixels.rgb else image.flip(-1)
    try:
        write_outputs(args.out, data, lambda: draw_influence(found, title, shown))
    except OSError as error:
        fail(f"cannot write: {error}")
    print(f"wrote {', '.join(map(str, args.out))}")


if __name__ == "__main__":
    main()
