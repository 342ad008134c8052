"""Train a linear classifier on the features of a frozen backbone."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from mmvssm.analysis import (
    check_outputs,
    draw_probe,
    extract_features,
    train_probe,
    write_outputs,
)
from mmvssm.engine import cli, measuring
from mmvssm.engine.data_check import require_data
from mmvssm.hub import load_weights
from mmvssm.progress import step_bar
from mmvssm.zoo import build_model

DESCRIPTION = """\
Train a linear classifier on the features of a frozen backbone and test it, as a measure of the
quality of the features.

The config is that of a classifier; its data may differ from those that the backbone was trained on.
Every image of the training and test data passes once through the test pipeline and the backbone.
The inputs of the head are kept in memory, standardised, and classified by one linear layer, which
is trained with SGD, momentum and a cosine schedule. Only the backbone is loaded from the
checkpoint, so it may be that of a classifier with other classes, a detector or a segmentor.
"""
EXAMPLES = """\
examples (the first one needs the results of make demo):
  python tools/analysis_tools/linear_probe.py configs/demo/vmamba-micro_digits-cls.py \\
      work_dirs/demo-cls/epoch_15.pth --batch-size 256 --out probe.json probe.png
  python tools/analysis_tools/linear_probe.py MY_CONFIG mmvssm://vmamba-tiny-s1l8 --device cuda

No code of the checkpoint is run.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="config file of a classifier")
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="weights of the backbone: a file or mmvssm://NAME"
    )
    parser.add_argument("--epochs", type=int, default=30, metavar="N", help="default: 30")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=4096,
        metavar="N",
        help="features per step of the linear classifier (default: 4096, for ImageNet)",
    )
    parser.add_argument("--lr", type=float, default=0.05, help="learning rate (default: 0.05)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order (default: 0)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    measuring.add_out_option(parser, "FILE.json, FILE.png or FILE.svg")
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if min(args.epochs, args.batch_size) < 1 or args.lr <= 0:
        parser.error("--epochs, --batch-size and --lr must be positive")
    return args


def main() -> None:
    args = parse_args()
    with measuring.refusals():
        check_outputs(args.out)
    cfg = cli.load_config(args.config, args.cfg_options)
    cli.require_checkpoint(args.checkpoint)
    if cli.library_of(cfg, "a linear probe") != "mmpretrain":
        cli.fail("a linear probe needs the config of a classifier of mmpretrain")
    require_data(cfg, "train_dataloader", "test_dataloader")
    with measuring.refusals():
        model = build_model(cfg)
        load_weights(model.backbone, args.checkpoint, "backbone.")
        model.to(args.device)
        features = {}
        for split in ("train", "test"):
            with step_bar(f"{split} batches", None) as progress:
                features[split] = extract_features(model, cfg, split, progress)
        with step_bar("epochs", args.epochs) as progress:
            probe = train_probe(
                features["train"],
                features["test"],
                epochs=args.epochs,
                batch_size=args.batch_size,
                lr=args.lr,
                seed=args.seed,
                device=args.device,
                progress=progress,
            )
    classes = features["test"].classes
    for split, found in features.items():
        print(f"{split}: {len(found.labels)} images, {found.values.shape[1]} features")
    print(f"accuracy on the training data: {probe.train_accuracy:.2f} %")
    print(f"accuracy on the test data: {probe.test_accuracy:.2f} %")
    data = dict(
        train_accuracy=probe.train_accuracy,
        test_accuracy=probe.test_accuracy,
        # JSON has no nan, the value for a class without images
        class_accuracy=[None if value != value else value for value in probe.class_accuracy],
        classes=classes,
        losses=probe.losses,
    )
    title = Path(args.config).stem
    with measuring.refusals():
        write_outputs(args.out, data, lambda: draw_probe(probe, classes, title))


if __name__ == "__main__":
    main()
