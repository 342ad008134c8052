"""Convert a released or trained checkpoint to a verified one of mmvssm, or back."""

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

import mmvssm  # noqa: F401  registers 'mmvssm::' bases before a config is read
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
  a released classifier, for tools/test.py or to start training from (load_from):
    python tools/convert_ema.py vssm1_tiny_0230s_ckpt_epoch_264.pth checkpoints/vmamba-t.pth
  its backbone, to initialise a detector or segmentor:
    python tools/convert_ema.py vssm1_tiny_0230s_ckpt_epoch_264.pth checkpoints/ --to detector
    python tools/train.py configs/vmamba/mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco.py --cfg-options \\
      model.backbone.init_cfg.checkpoint=FILE
  the weights of a training run with EMAHook, averaged or as trained:
    python tools/convert_ema.py work_dirs/NAME/epoch_300.pth averaged.pth --weights ema
    python tools/convert_ema.py work_dirs/NAME/epoch_300.pth trained.pth --weights online
  weights of a family declared in your own project (see mmvssm.families.register_family):
    python tools/convert_ema.py snake_tiny.pth snake.pth --import snake_vmamba
  weights trained here, for the original project's code:
    python tools/convert_ema.py work_dirs/NAME/epoch_300.pth vmamba-original.pth --reverse

Averaged weights: research code stores them as 'model_ema', 'ema_model' or 'state_dict_ema', next to
'model' or 'state_dict'. In a file saved by EMAHook it is the other way round: 'state_dict' holds
the AVERAGED weights, so that tools/test.py evaluates them, and 'ema_state_dict' the weights as
trained. The output holds only one kind, and its meta says which.

No code of a file is run. Exit status: 0; 1 for input that cannot be converted; 2 for a wrong
command line, or a file that would run code; 130 if interrupted.
"""
#: Signals of clusters and terminals that are treated like Ctrl-C, so that the run cleans up.
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="checkpoint: a released file of one of the families, or one of an OpenMMLab training"
        " run (.pth, .pt, .ckpt, .safetensors)",
    )
    parser.add_argument(
        "target",
        metavar="DST",
        help="file to write (.pth or .safetensors); the first 8 digits of its SHA-256 are added to "
        "the name. Or a folder (FOLDER/), to use the source's name; missing folders are created",
    )
    parser.add_argument(
        "--arch",
        metavar="ARCH",
        help="compare the weights with this arch instead of the detected one, e.g. tiny-s1l8 or "
        "local_vim/small-searched, or with the model of a config file (.py), including its heads",
    )
    add_import_option(parser, "a family declared in your own project")
    parser.add_argument(
        "--weights",
        choices=["auto", "ema", "online"],
        default="auto",
        help="convert the exponential moving average or the weights as trained (default: auto, the "
        "ones that gave the authors' results; for other files, the average if there is one)",
    )
    parser.add_argument(
        "--to",
        choices=CONTENTS,
        help="content to write (default: that of the file): classifier, for load_from and tests; "
        "backbone, only its layers; detector or segmentor, the complete model if the file has it, "
        "else the backbone for init_cfg in the configs of the task",
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
        "--force", action="store_true", help="replace an existing file with the output's name"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="read SRC with pickle, RUNNING any code in it: only for files from people whom you "
        "would let use your account",
    )
    return parser.parse_args()


@contextmanager
def bar(title: str, checkpoint: Checkpoint | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error for large files.

    Parts of ``checkpoint`` that have been read are released on the way, to save memory.
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
    """Wrap ``progress`` to ignore interrupts once writing is complete and only renaming is left.

    A later interrupt would report that nothing was written, although the file exists.
    """

    def show(done: int, total: int) -> None:
        progress(done, total)
        if done == total:
            for number in INTERRUPTS:
                signal.signal(number, signal.SIG_IGN)

    return show


def output_path(target: str | Path, source: str | Path) -> Path:
    """Return the path of the output, without the digits of its hash.

    Args:
        target: A path that ends in one of :data:`SUFFIXES`; or a folder that exists or ends in a
            slash, in which the output gets the name of the source.
        source: The file to convert.

    Raises:
        ValueError: If ``target`` is neither.
    """
    path = Path(target)
    is_folder = path.is_dir() or str(target).endswith(("/", os.sep))
    existing = existing_folder(path if is_folder else path.parent)
    if not existing.is_dir():
        raise ValueError(f"{str(existing)!r} is a file or a broken link: name a folder to write to")
    if is_folder:
        name = Path(source).name.removesuffix(".tar")  # some files are named .pth.tar
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
    """Format the size of a file in megabytes."""
    return f"{path.stat().st_size / 1e6:.1f} MB"


def describe(converted: Converted, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield lines that describe the content of the file."""
    weights, found = converted.weights, converted.found
    kinds = {"ema": "EMA weights", "online": "weights as trained"}
    others = [
        f"{kinds[other.kind]} in {other.place}"
        for other in find_weights(checkpoint)
        if other.place != weights.place
    ]
    also = f"; the file also has {', '.join(others)}" if others else ""
    below = f", without the prefix {printable(weights.prefix)!r}" if weights.prefix else ""
    yield f"took     {kinds[weights.kind]} from {weights.place}{below}{also}"
    options = "".join(f", {name}={value!r}" for name, value in found.options.items())
    yield f"found    {found.family.type}, arch={found.arch!r}{options}: a {converted.source}"
    if found.family.licence and converted.names is not None:
        yield f"licence  weights of the authors of {found.family.type} are {found.family.licence}"
    if found.others:
        yield (
            f"         {', '.join(map(repr, found.others))} has the same shapes; pass --arch if it"
            " is that one"
        )
    count = sum(value.numel() for value in converted.state_dict.values())
    heads = [key for key in converted.state_dict if not key.startswith("backbone.")]
    what = "none missing or left over"
    if heads and converted.content != "classifier" and not converted.heads_checked:
        what = (
            f"none of the backbone missing or left over; the {len(heads)} others are only compared"
            " with a model if --arch names its config"
        )
    yield f"checked  {len(converted.state_dict)} tensors, {count:,} numbers, all finite: {what}"
    if converted.content in ("detector", "segmentor") and converted.content != converted.source:
        yield f"made     the backbone of a {converted.content}, for init_cfg"
    elif converted.content != converted.source:
        yield f"made     a {converted.content} from it"
    if converted.unused:
        names = join_names(converted.unused)
        yield f"         left out, because the output does not use them: {names}"
    if converted.reinitialised:
        layers = dict.fromkeys(key.rpartition(".")[0] for key in converted.reinitialised)
        yield f"         not in the file, so newly initialised: {', '.join(layers)}"


def main() -> None:
    args = parse_args()
    for number in INTERRUPTS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and scripts ignore some signals
            signal.signal(number, signal.default_int_handler)
    source = Path(args.source)
    if getattr(sys.stdout, "errors", None) == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # for file names that are not text
    warnings.formatwarning = lambda message, *_: f"convert_ema.py: warning: {message}\n"
    try:
        import_modules(args.modules)
        place = output_path(args.target, source)
        if args.reverse and place.suffix == ".safetensors":
            raise ValueError("the original projects cannot read .safetensors: use .pth for DST")
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
        fail(f"cannot read or write: {error}; check SRC, and disk space and permissions of DST")
    print(f"wrote    {product}, {size_of(product)}")


if __name__ == "__main__":
    main()
