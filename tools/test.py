"""Test a checkpoint of a classifier, detector or segmentor."""

import argparse
import os

import mmengine
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import METRICS

import mmvssm  # noqa: F401  registers 'mmvssm::' bases before the config is read
from mmvssm.engine import cli, runtime
from mmvssm.engine.data_check import require_data
from mmvssm.engine.plain_files import read_files_safely
from mmvssm.engine.tta import tta_model, tta_pipeline
from mmvssm.files import atomic_write

EXAMPLES = """examples:
  the metrics of a checkpoint:
    python tools/test.py CONFIG work_dirs/NAME/epoch_12.pth
  segmentation over several scales and flips, mIoU(MS), on 8 GPUs:
    tools/dist_test.sh CONFIG CHECKPOINT 8 --tta
  predictions as a file (in segmentation, a folder of PNG files) and as pictures:
    python tools/test.py CONFIG CHECKPOINT --out predictions.pkl --show-dir pictures
  the metrics as JSON:
    python tools/test.py CONFIG CHECKPOINT --out metrics.json --out-item metrics

No code of a checkpoint is run.
"""

# Hooks that draw predictions, by library.
DRAWING_HOOKS = {
    "mmpretrain": "VisualizationHook",
    "mmdet": "mmdet.DetVisualizationHook",
    "mmseg": "mmseg.SegVisualizationHook",
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint file or URL")
    parser.add_argument(
        "--tta",
        action="store_true",
        help="average over augmented views, those of tta_model and tta_pipeline of the config; "
        "default in classification and detection: the image and its mirror image",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="save predictions: a .pkl file in classification and detection, a folder of label "
        "maps in segmentation",
    )
    parser.add_argument(
        "--out-item",
        choices=["pred", "metrics"],
        help="what --out saves (default: pred); metrics go to a .json, .yaml or .pkl file",
    )
    parser.add_argument("--show", action="store_true", help="show predictions in a window")
    parser.add_argument("--show-dir", metavar="DIR", help="save pictures of the predictions")
    parser.add_argument(
        "--interval",
        type=int,
        default=1,
        metavar="N",
        help="draw every N-th image (default: 1; in detection always every image)",
    )
    parser.add_argument(
        "--wait-time",
        type=float,
        default=2,
        metavar="SECONDS",
        help="time for which --show displays an image (default: 2)",
    )
    cli.add_shared_arguments(parser)
    args = parser.parse_args()

    if args.out_item is not None and args.out is None:
        parser.error("--out-item needs --out PATH")
    if args.out_item == "metrics" and not args.out.endswith((".json", ".yaml", ".yml", ".pkl")):
        parser.error(f"--out must end in .json, .yaml or .pkl for metrics, got {args.out!r}")
    if args.interval < 1:
        parser.error(f"--interval must be at least 1, got {args.interval}")
    return args


def set_up_drawing(cfg: Config, args: argparse.Namespace) -> None:
    """Enable the library's drawing hook, which has other options in each library."""
    library = cli.library_of(cfg, "--show")
    if library == "mmpretrain" and args.tta:
        cli.fail("--show and --show-dir cannot be combined with --tta in classification")
    hook = dict(type=DRAWING_HOOKS[library])
    hook.update(cfg.get("default_hooks", {}).get("visualization", {}))
    hook.update(show=args.show, interval=args.interval, wait_time=args.wait_time)
    # An absolute path, because mmdet joins a relative one to its own path again for every image.
    folder = args.show_dir and os.path.abspath(args.show_dir)
    if library == "mmpretrain":
        hook.update(enable=True, out_dir=folder)
    elif library == "mmdet":
        hook.update(draw=True, test_out_dir=folder)
    else:
        hook.update(draw=True)
        if folder:
            cfg.visualizer.save_dir = folder
    cfg.merge_from_dict({"default_hooks.visualization": hook})


def set_up_tta(cfg: Config, config_path: str) -> None:
    """Wrap the model for several views of each image, and set the TTA pipeline of the datasets."""
    for dataset in cli.leaf_datasets(cfg.test_dataloader.dataset):
        dataset.pipeline = tta_pipeline(cfg, config_path, dataset.pipeline)
    cfg.model = dict(**tta_model(cfg), module=cfg.model)


def set_up_out(cfg: Config, out: str) -> dict | None:
    """Make the evaluation save predictions; return the config of an extra metric, if needed."""
    library = cli.library_of(cfg, "--out")
    if library == "mmseg":
        # Before the processes start: mmseg creates it in one of them, and the others do not wait.
        os.makedirs(out, exist_ok=True)
        evaluator = cfg.test_evaluator
        for metric in evaluator if isinstance(evaluator, list) else [evaluator]:
            metric.update(output_dir=out, keep_results=True)
        return None
    if not out.endswith((".pkl", ".pickle")):
        cli.fail(f"--out must end in .pkl to save predictions, got {out!r}")
    kind = "mmdet.DumpDetResults" if library == "mmdet" else "DumpResults"
    return dict(type=kind, out_file_path=out)


def save_metrics(metrics: dict, out: str) -> None:
    """Write the metrics to ``out`` atomically."""
    os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    atomic_write(out, lambda part: mmengine.dump(metrics, part))


def main() -> None:
    args = parse_args()
    read_files_safely()
    cfg = cli.load_config(args.config, args.cfg_options, args.option)
    cli.require_checkpoint(args.checkpoint)
    require_data(cfg, "test_dataloader")
    for part in ("test_cfg", "test_dataloader", "test_evaluator"):
        if cfg.get(part) is None:
            cli.fail(f"{args.config!r} has no {part}")

    runtime.require_packages(cfg)
    cli.set_work_dir(cfg, args)
    cli.set_up_loaders(cfg, args, "test_dataloader")
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        set_up_drawing(cfg, args)
    if args.tta:
        set_up_tta(cfg, args.config)
    dump = set_up_out(cfg, args.out) if args.out and args.out_item != "metrics" else None

    cli.set_up_launch(cfg, args)
    runner = cli.build_runner(cfg)
    runner.register_hook(cli.CompleteWeightsHook())
    if dump is not None:
        runner.test_evaluator.metrics.append(METRICS.build(dump))
    with cli.foreign_weights_refused():
        metrics = runner.test()
    if args.out_item == "metrics" and is_main_process():
        save_metrics(metrics, args.out)


if __name__ == "__main__":
    main()
