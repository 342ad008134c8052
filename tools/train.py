"""Train a classifier, detector or segmentor from a config of mmpretrain, mmdet or mmseg.

Train on the recipe's benchmark or, with --data, on your own images, COCO file or label maps,
starting from the weights released for the network.
"""

import argparse

from mmengine.config import Config
from mmengine.device import get_device

import mmvssm  # noqa: F401  registers 'mmvssm::' bases before the config is read
from mmvssm.engine import cli, make_resumable, runtime
from mmvssm.engine.data_check import require_data
from mmvssm.engine.finetune import command
from mmvssm.engine.plain_files import read_files_safely
from mmvssm.engine.work_folder import claim_work_dir, full_disk_explained
from mmvssm.families import arch_names

EXAMPLES = """examples:
  train, then continue after an interruption:
    python tools/train.py configs/demo/vmamba-micro_digits-cls.py
    python tools/train.py configs/demo/vmamba-micro_digits-cls.py --resume
  a fixed seed and smaller batches, in another folder:
    python tools/train.py CONFIG --work-dir runs/a \\
        --cfg-options randomness.seed=0 train_dataloader.batch_size=8
  learning rate scaled by the actual batch size, mixed precision, 8 GPUs:
    tools/dist_train.sh CONFIG 8 --auto-scale-lr --amp
  your own images (photos/train/CLASS/*.jpg), boxes (a COCO file) and label maps:
    python tools/train.py configs/vmamba/vmamba-tiny-s1l8_8xb128_in1k.py \\
        --data photos --epochs 20
    python tools/train.py configs/vmamba/mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco.py \\
        --data boxes --epochs 12 --train-annotations train.json --train-images pictures
    python tools/train.py \\
        configs/vmamba/vmamba-tiny-s1l8_upernet_4xb4-160k_ade20k-512x512.py \\
        --data maps --epochs 50
  bfloat16, gradient checkpointing and TensorBoard:
    python tools/train.py CONFIG --option amp-bf16 gradient-checkpointing tensorboard

A resumed run ends with the weights of an uninterrupted one, because all random numbers depend only
on the seed, the rank and the iteration. On GPUs, also set randomness.deterministic=True.
No code of a checkpoint is run. This script saves only plain values, which stock scripts and
inferencers can read as well (docs/checkpoints.md).
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue a run from a checkpoint; without a file, from the newest one in the work "
        "folder (or from the start if there is none)",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision (GPU)")
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate by actual batch size / auto_scale_lr.base_batch_size",
    )
    parser.add_argument("--no-validate", action="store_true", help="do not evaluate while training")
    parser.add_argument(
        "--no-persistent-workers",
        action="store_true",
        help="restart the data workers in every epoch",
    )
    command.add_arguments(parser)
    cli.add_shared_arguments(parser)
    args = parser.parse_args()
    command.check_arguments(parser, args)
    return args


def released_name(cfg: Config) -> str | None:
    """Return the name of the released weights of a config's backbone; None for a custom arch."""
    backbone = cfg.model.backbone
    own = cli.type_name(backbone), backbone.get("arch")
    for name, (family, arch) in arch_names().items():
        if (family.backbone.__name__, arch) == own:
            return f"mmvssm://{name}"
    return None


def set_up_resume(cfg: Config, resume: str) -> None:
    """Set the checkpoint to resume from, and the seed of its run."""
    checkpoint = cli.latest_checkpoint(cfg.work_dir) if resume == "auto" else resume
    cfg.resume = True
    cfg.load_from = checkpoint
    if checkpoint is None:
        print(f"Nothing to resume in {cfg.work_dir}: training from the start.", flush=True)
        return
    cli.require_checkpoint(checkpoint)
    if cfg.get("randomness", {}).get("seed") is None:
        cfg.merge_from_dict({"randomness.seed": cli.seed_of(checkpoint)})


def set_up_amp(cfg: Config) -> None:
    """Replace the optimizer wrapper by one for mixed precision."""
    # mmpretrain's schedules omit the type.
    kind = cli.type_name(cfg.optim_wrapper) or "OptimWrapper"
    if kind.endswith("AmpOptimWrapper"):
        return
    if kind != "OptimWrapper":
        cli.fail(f"--amp needs an optim_wrapper of type OptimWrapper, but the config's is {kind}")
    if get_device() == "cpu":
        cli.fail("--amp needs a GPU, but there is none")
    cfg.optim_wrapper.type = "AmpOptimWrapper"
    cfg.optim_wrapper.setdefault("loss_scale", "dynamic")


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Return the config with the command line applied."""
    cli.set_work_dir(cfg, args)
    cfg = command.set_up(cfg, args, released_name)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        set_up_amp(cfg)
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            cli.fail(
                f"--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=N) in {args.config!r}, "
                "the batch size over all GPUs for which its learning rate is set"
            )
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        set_up_resume(cfg, args.resume)

    loaders = ("train_dataloader", "val_dataloader")
    runtime.require_packages(cfg)
    runtime.set_up_optimization(cfg, args)
    require_data(cfg, *loaders)
    cli.require_weights(cfg)
    if args.no_persistent_workers:
        for name in loaders:
            if cfg.get(name) is not None:
                cfg[name].persistent_workers = False
    cli.set_up_loaders(cfg, args, *loaders)
    make_resumable(cfg)
    return cfg


def main() -> None:
    args = parse_args()
    read_files_safely()
    cfg = cli.load_config(args.config, args.cfg_options, args.option)
    cfg = merge_args(cfg, args)
    claim_work_dir(cfg.work_dir)
    cli.set_up_launch(cfg, args)
    with cli.foreign_weights_refused(), full_disk_explained(cfg.work_dir):
        cli.build_runner(cfg).train()


if __name__ == "__main__":
    main()
