"""Export a classifier, segmentor or detector to ONNX, torch.export or compiled code."""

import argparse
from pathlib import Path

import torch

import mmvssm  # noqa: F401  registers 'mmvssm::' bases before the config is read
from mmvssm.engine import cli
from mmvssm.engine.export import (
    PACKAGES,
    Exported,
    largest_difference,
    load_file,
    plan_export,
    require_exporter,
    trace,
    write_compiled,
    write_onnx,
    write_program,
)
from mmvssm.engine.loading import load_model

EXAMPLES = """examples:
  for ONNX Runtime and others, with any batch and image size:
    python tools/export.py configs/vmamba/vmamba-tiny-s1l8_8xb128_in1k.py \\
        mmvssm://vmamba-tiny-s1l8 -o vmamba.onnx
  for a fixed image size, which gives a simpler graph:
    python tools/export.py CONFIG CHECKPOINT -o model.onnx --shape 224 224
  for torch.export.load:
    python tools/export.py CONFIG CHECKPOINT -o model.pt2
  compiled for the processor of this machine, for torch._inductor.aoti_load_package:
    python tools/export.py CONFIG CHECKPOINT -o model.pt2 --aot

The input is `image`, float32 (B, 3, H, W) in BGR with values from 0 to 255; normalisation is part
of the graph. The written file is compared with the model. No code of the checkpoint is run.
"""
#: Largest accepted difference of an output from the model's.
TOLERANCE = 1e-4


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint file or mmvssm://NAME")
    parser.add_argument(
        "-o", "--out", metavar="FILE", required=True, help="file to write: NAME.onnx or NAME.pt2"
    )
    parser.add_argument(
        "--shape",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="fix the image size (default: any size of at least 32 32)",
    )
    parser.add_argument(
        "--aot",
        action="store_true",
        help="compile NAME.pt2 with AOTInductor (needs a C++ compiler)",
    )
    cli.add_config_arguments(parser)
    args = parser.parse_args()
    if Path(args.out).suffix not in PACKAGES:
        parser.error(f"-o must end in {' or '.join(PACKAGES)}, got {args.out!r}")
    if args.aot and Path(args.out).suffix != ".pt2":
        parser.error(f"--aot writes a .pt2 file, got -o {args.out!r}")
    if args.shape and min(args.shape) < 32:
        parser.error(f"--shape must be at least 32 32, got {' '.join(map(str, args.shape))}")
    return args


def main() -> None:
    args = parse_args()
    path = Path(args.out)
    cli.require_place(path)
    require_exporter(path.suffix, args.aot)
    cfg = cli.load_config(args.config, args.cfg_options, args.option)
    library = cli.library_of(cfg, "export")
    model = load_model(cfg, args.checkpoint, "export")
    plan = plan_export(model, library, args.shape and tuple(args.shape))
    for note in plan.notes:
        print(f"Note: {note}.", flush=True)
    print("Exporting takes about a minute for every ten layers.", flush=True)

    module = Exported(model, library).eval()
    with torch.no_grad():
        outputs = module(torch.zeros(1, 3, *plan.shape))
        num_maps = len(model.extract_feat(torch.zeros(1, 3, *plan.shape)))
    program = trace(module, plan)
    if path.suffix == ".onnx":
        write_onnx(program, module.output_names(outputs, num_maps), path)
    elif args.aot:
        write_compiled(program, path)
    else:
        write_program(program, path)

    size = path.stat().st_size / 2**20
    sizes = "any size" if plan.open_size else f"{plan.shape[0]}x{plan.shape[1]}"
    print(f"{path}: {size:.1f} MiB, for batches of any size, images of {sizes}")
    run = load_file(path, args.aot)
    if run is None:
        print("Not compared with the model: onnxruntime is not installed.")
        return
    worst = largest_difference(run, module, plan)
    if worst > TOLERANCE:
        cli.fail(f"{args.out!r} differs from the model by {worst:.1e}: do not use it")
    print(f"Compared with the model at another batch size: differs by at most {worst:.1e}.")


if __name__ == "__main__":
    main()
