"""Draw which regions of an image support a class (Grad-CAM)."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmvssm.analysis import check_outputs, draw_cam, grad_cam, load_model, write_outputs
from mmvssm.analysis.options import add_device_option, add_out_option, to_numbers
from mmvssm.engine.cli import (
    add_import_option,
    fail,
    import_modules,
    library_of,
    load_config,
    require_checkpoint,
)
from mmvssm.libraries import MissingLibraryError
from mmvssm.models.layers import ForeignWeightsError

DESCRIPTION = """\
Draw which regions of an image support a class (Grad-CAM).

The channels of the backbone's last map are weighted by the gradient of the class score and summed;
the positive part of the sum is drawn over the image. The score is the logit of a classifier, the
logits of a segmentor where the class is the most likely one, or the scores of a detector's boxes.
The image passes through the test pipeline of the config.
"""
EXAMPLES = """\
examples:
  python tools/analysis_tools/cam.py configs/vmamba/vmamba-tiny-s1l8_8xb128_in1k.py \\
      mmvssm://vmamba-tiny-s1l8 dog.jpg --out dog.png
  python tools/analysis_tools/cam.py configs/demo/vim-micro_digits-cls.py \\
      work_dirs/vim-micro_digits-cls/epoch_15.pth data/digits-cls/val/5/0033.png --label 3 \\
      --out three.png three.svg three.json

For plain backbones, the map consists of the patch tokens, before the last layer if the head reads a
class token.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", metavar="CONFIG", help="config of any of the three libraries (.py)"
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file, URL or mmvssm://NAME")
    parser.add_argument("image", metavar="IMAGE", help="the image")
    parser.add_argument(
        "--label", type=int, metavar="N", help="index of the class (default: the most likely)"
    )
    add_device_option(parser)
    add_out_option(parser)
    add_import_option(parser, "routes or a family")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        check_outputs(args.out)
    except ValueError as error:
        fail(str(error))
    import_modules(args.modules)
    cfg = load_config(args.config, {})
    library_of(cfg, "Grad-CAM")
    require_checkpoint(args.checkpoint)
    try:
        model = load_model(cfg, args.checkpoint).to(args.device)
        found = grad_cam(model, cfg, args.image, args.label)
    except (OSError, ValueError, ForeignWeightsError, MissingLibraryError) as error:
        fail(str(error))
    height, width = found.values.shape
    print(f"class {found.label}, score {found.score:.4g}: a map of {height}x{width}")
    if not found.values.any():
        print("no region raises the score")
    data = dict(
        config=args.config, checkpoint=args.checkpoint, image=args.image, label=found.label,
        score=found.score, values=to_numbers(found.values),
    )  # fmt: skip
    try:
        write_outputs(args.out, data, lambda: draw_cam(found, Path(args.config).stem))
    except OSError as error:
        fail(f"cannot write: {error}")
    print(f"wrote {', '.join(map(str, args.out))}")


if __name__ == "__main__":
    main()
