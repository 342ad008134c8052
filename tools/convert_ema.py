"""Turn a released or trained checkpoint into a clean, checked one of mmvssm, or back."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import mmvssm  # noqa: F401  makes 'mmvssm::' bases known before a config is read
from mmvssm.checkpoint import (
    CONTENTS,
    DTYPES,
    Checkpoint,
    Converted,
    HostileFileError,
    convert,
    find_weights,
    read_checkpoint,
    to_original,
    write_checkpoint,
)
from mmvssm.checkpoint.convert import backbone_of, is_finite
from mmvssm.checkpoint.writing import DIGITS, SUFFIXES
from mmvssm.engine.cli import add_import_option, fail, import_modules
from mmvssm.files import existing_folder
from mmvssm.messages import join_names, printable
from mmvssm.progress import LARGE, byte_bar

EXAMPLES = """examples:
  a released classifier, for tools/test.py or as the start of a training (load_from):
    python tools/convert_ema.py vssm1_tiny_0230s_ckpt_epoch_264.pth checkpoints/vmamba-t.pth
  its backbone, to start a detector or segmentor from:
    python tools/convert_ema.py vssm1_tiny_0230s_ckpt_epoch_264.pth checkpoints/ --to detector
    python tools/train.py configs/vmamba/mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco.py --cfg-options \\
      model.backbone.init_cfg.checkpoint=FILE
  the weights of a training with EMAHook: their average, or as they were trained:
    python tools/convert_ema.py work_dirs/NAME/epoch_300.pth averaged.pth --weights ema
    python tools/convert_ema.py work_dirs/NAME/epoch_300.pth trained.pth --weights online
  weights of a family that a project of yours declares, see mmvssm.families.register_family:
    python tools/convert_ema.py snake_tiny.pth snake.pth --import snake_vmamba
  weights trained here, for the original project's code:
    python tools/convert_ema.py work_dirs/NAME/epoch_300.pth vmamba-original.pth --reverse

Which weights a file holds: research code keeps averaged weights under 'model_ema', 'ema_model' or
'state_dict_ema', next to 'model' or 'state_dict'. A file that EMAHook has saved is the other way
round: 'state_dict' holds the AVERAGED weights, so that tools/test.py evaluates them, and
'ema_state_dict' the weights as trained. A product holds one kind only, and its meta says which.

Nothing that a file asks for is run while it is read. Exit status: 0; 1 for input that cannot be
converted; 2 for a wrong command line and for a file that asks to run code; 130 when interrupted.
"""
#: The ends of a cluster's time and of a terminal are taken as Ctrl-C: the run cleans up.
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="checkpoint: a released file of one of the families, or of a training with OpenMMLab"
        " (.pth, .pt, .ckpt, .safetensors)",
    )
    parser.add_argument(
        "target",
        metavar="DST",
        help="file to write (.pth, or .safetensors), whose name gets the first 8 digits of its "
        "SHA-256 before the suffix; or a folder (FOLDER/), for the source's name; folders that are "
        "missing are made",
    )
    parser.add_argument(
        "--arch",
        metavar="ARCH",
        help="hold the weights against this arch instead of the one found, e.g. tiny-s1l8 or "
        "local_vim/small-searched, or against the model of a config file (.py), heads included",
    )
    add_import_option(parser, "a family that a project of your own declares")
    parser.add_argument(
        "--weights",
        choices=["auto", "ema", "online"],
        default="auto",
        help="take the exponential moving average or the weights as trained (default: auto, those "
        "that gave the authors' results, in other files the average where there is one)",
    )
    parser.add_argument(
        "--to",
        choices=CONTENTS,
        help="what to write (default: what the file holds): classifier, for load_from and tests; "
        "backbone, its layers alone; detector or segmentor, the complete model if the file has it, "
        "else the backbone as the configs of the task take it in init_cfg",
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), help="dtype of the weights (default: the file's)"
    )
    parser.add_argument(
        "--reverse",
        action="store_true",
        help="write a file for the original project's code, under its names",
    )
    parser.add_argument(
        "--verify", action="store_true", help="run the backbone once and check its outputs"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a file that has the product's name"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="read SRC with pickle, RUNNING whatever code it holds: only for files of people whom "
        "you would let use your account",
    )
    return parser.parse_args()


@contextmanager
def bar(title: str, checkpoint: Checkpoint | None = None) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, shown when there is much to do.

    What has been read of ``checkpoint`` is let go on the way, so that it never takes much memory.
    """
    released = 0
    with byte_bar(title, LARGE) as progress:

        def show(done: int, total: int) -> None:
            nonlocal released
            progress(done, total)
            if checkpoint is not None and done - released >= LARGE:
                checkpoint.release()
                released = done

        yield show


def until_complete(progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """``progress`` of writing, after which interrupts are ignored: only a renaming is left.

    One that came behind it would say that nothing was written.
    """

    def show(done: int, total: int) -> None:
        progress(done, total)
        if done == total:
            for number in INTERRUPTS:
                signal.signal(number, signal.SIG_IGN)

    return show


def output_path(target: str | Path, source: str | Path) -> Path:
    """Return the path of a product, but for the digits of its hash.

    Args:
        target: A path that ends in one of :data:`SUFFIXES`; or a folder, which exists or is named
            with a slash at its end, in which the product has the name of the source.
        source: The file that is converted.

    Raises:
        ValueError: If ``target`` is none of these.
    """
    path = Path(target)
    is_folder = path.is_dir() or str(target).endswith(("/", os.sep))
    existing = existing_folder(path if is_folder else path.parent)
    if not existing.is_dir():
        raise ValueError(
            f"{str(existing)!r} is a file, or a link to nothing: name a folder to write into"
        )
    if is_folder:
        name = Path(source).name.removesuffix(".tar")  # some files are called .pth.tar
        stem = re.sub(rf"-[0-9a-f]{{{DIGITS}}}$", "", Path(name).stem)
        return path / f"{stem}.pth"
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{str(path)!r} must end in {', '.join(SUFFIXES)}, or in a slash for a folder"
        )
    return path


def smoke_test(converted: Converted) -> dict[str, Tensor]:
    """Run the backbone, and a linear classifier, on one image of noise.

    Returns:
        ``output{k}`` of the backbone and, for classifiers, ``logits (1, classes)``.

    Raises:
        ValueError: If an output is not finite.
    """
    weights = converted.state_dict
    weights = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    backbone = converted.found.build().eval()
    backbone.load_state_dict(backbone_of(weights), assign=True)
    size = converted.found.options.get("img_size", 224)
    size = (size, size) if isinstance(size, int) else tuple(size)
    noise = torch.randn(1, backbone.in_channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = {f"output{k}": out for k, out in enumerate(backbone(noise))}
        if "head.fc.weight" in weights:
            last = list(outputs.values())[-1]
            pooled = last if last.dim() == 2 else last.mean((2, 3))
            head = weights["head.fc.weight"], weights["head.fc.bias"]
            outputs["logits"] = F.linear(pooled, *head)
    wrong = [name for name, value in outputs.items() if not is_finite(value)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} of a forward pass is NaN or infinite")
    return outputs


def size_of(path: Path) -> str:
    """Size of a file in megabytes."""
    return f"{path.stat().st_size / 1e6:.1f} MB"


def describe(converted: Converted, checkpoint: Checkpoint) -> Iterator[str]:
    """Lines on what was found in the file."""
    weights, found = converted.weights, converted.found
    kinds = {"ema": "EMA weights", "online": "weights as trained"}
    others = [
        f"{kinds[other.kind]} in {other.place}"
        for other in find_weights(checkpoint)
        if other.place != weights.place
    ]
    also = f"; the file also has {', '.join(others)}" if others else ""
    below = f", behind the prefix {printable(weights.prefix)!r}" if weights.prefix else ""
    yield f"took     {kinds[weights.kind]} from {weights.place}{below}{also}"
    options = "".join(f", {name}={value!r}" for name, value in found.options.items())
    yield f"found    {found.family.type}, arch={found.arch!r}{options}: a {converted.source}"
    if found.family.licence and converted.names is not None:
        yield f"licence  weights of the authors of {found.family.type} are {found.family.licence}"
    if found.others:
        yield (
            f"         {', '.join(map(repr, found.others))} has the same shapes, so say"
            " --arch if it is that one"
        )
    count = sum(value.numel() for value in converted.state_dict.values())
    heads = [key for key in converted.state_dict if not key.startswith("backbone.")]
    what = "none missing or left over"
    if heads and converted.content != "classifier" and not converted.heads_checked:
        what = (
            f"none of the backbone missing or left over; the {len(heads)} others are compared with"
            " a model if --arch names its config"
        )
    yield f"checked  {len(converted.state_dict)} tensors, {count:,} numbers, all finite: {what}"
    if converted.content in ("detector", "segmentor") and converted.content != converted.source:
        yield f"made     the backbone that {converted.content}s start from, for init_cfg"
    elif converted.content != converted.source:
        yield f"made     a {converted.content} of it"
    if converted.unused:
        names = join_names(converted.unused)
        yield f"         left out, as the product has no use for them: {names}"
    if converted.reinitialised:
        layers = dict.fromkeys(key.rpartition(".")[0] for key in converted.reinitialised)
        yield f"         not in the file, so at their start: {', '.join(layers)}"


def main() -> None:
    args = parse_args()
    for number in INTERRUPTS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and scripts ignore some
            signal.signal(number, signal.default_int_handler)
    source = Path(args.source)
    if getattr(sys.stdout, "errors", None) == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # for names of files that are no text
    warnings.formatwarning = lambda message, *_: f"convert_ema.py: warning: {message}\n"
    try:
        import_modules(args.modules)
        place = output_path(args.target, source)
        if args.reverse and place.suffix == ".safetensors":
            raise ValueError("the original projects read no .safetensors: let DST end in .pth")
        with bar("reading") as progress:
            checkpoint = read_checkpoint(source, trust=args.trust, progress=progress)
        print(f"read     {args.source}, {size_of(source)}")
        with bar("checking", checkpoint) as progress:
            converted = convert(
                checkpoint,
                arch=args.arch,
                weights=args.weights,
                to=args.to,
                dtype=args.dtype,
                progress=progress,
            )
        for line in describe(converted, checkpoint):
            print(line)
        if args.verify:
            start = time.perf_counter()
            shapes = {name: tuple(out.shape) for name, out in smoke_test(converted).items()}
            words = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            print(f"ran      once in {time.perf_counter() - start:.1f} s, all finite: {words}")
        if args.reverse:
            content = to_original(converted)
        else:
            content = dict(meta=converted.meta, state_dict=converted.state_dict)
        with bar("writing", checkpoint) as progress:
            product = write_checkpoint(
                place, content, force=args.force, progress=until_complete(progress)
            )
    except KeyboardInterrupt:
        print("convert_ema.py: error: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)
    except HostileFileError as error:
        print(f"convert_ema.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot read or write: {error}; check SRC, and the room and rights where DST is")
    print(f"wrote    {product}, {size_of(product)}")


if __name__ == "__main__":
    main()
