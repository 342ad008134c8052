"""Every config trains for a step and predicts, on its own pipeline, inherited from outside."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import mmvssm  # noqa: F401  makes `mmvssm::` known to MMEngine

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = [
    "mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco",
    "mask-rcnn_vmamba-tiny-s1l8_fpn_ms-3x_coco",
    "mask-rcnn_vmamba-v0-tiny_fpn_1x_coco",
    "mask-rcnn_vmamba-v0-tiny_fpn_ms-3x_coco",
    "vmamba-tiny-s1l8_8xb128_in1k",
    "vmamba-tiny-s1l8_upernet_4xb4-160k_ade20k-512x512",
    "vmamba-v0-tiny_8xb128_in1k",
    "vmamba-v0-tiny_upernet_4xb4-160k_ade20k-512x512",
]
DEMO = sorted(path.stem for path in (ROOT / "configs" / "demo").glob("*.py"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Leaves out what costs more than the step: notes on machine and config, initial values."""
    monkeypatch.setattr(Config, "pretty_text", "not formatted")
    monkeypatch.setattr(Runner, "_log_env", lambda runner, env_cfg: None)
    monkeypatch.setattr(Runner, "_init_model_weights", lambda runner: None)


METRICS = {"mmpretrain": "accuracy/top1", "mmdet": "coco/bbox_mAP_50", "mmseg": "mIoU"}
SIZES = ("scale", "scales", "crop_size")


def shrink(value, factor):
    """Divide all sizes in a pipeline, however deeply nested."""
    if isinstance(value, dict):
        return {
            key: divide(item, factor) if key in SIZES else shrink(item, factor)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(shrink(item, factor) for item in value)
    return value


def divide(value, factor):
    if isinstance(value, (list, tuple)):
        return type(value)(divide(item, factor) for item in value)
    return value // factor


def inherit(name, tmp_path):
    """The config as a user's file with `_base_ = 'mmvssm::...'` gets it."""
    (tmp_path / "mine.py").write_text(f"_base_ = 'mmvssm::{name}.py'\n")
    cfg = Config.fromfile(tmp_path / "mine.py")
    cfg.work_dir = str(tmp_path)
    # MMEngine keeps one visualizer per name for the whole process
    cfg.experiment_name = cfg.visualizer.name = tmp_path.name
    return cfg


def lighten(model):
    """Thinner heads and fewer proposals; also boxes of which an untrained detector is unsure."""
    if model.type == "EncoderDecoder":
        model.decode_head.channels = model.auxiliary_head.channels = 32
    if model.type == "MaskRCNN":
        model.roi_head.bbox_head.fc_out_channels = 64
        model.train_cfg.rcnn.sampler.num = 32
        model.train_cfg.rpn_proposal.max_per_img = model.test_cfg.rpn.max_per_img = 50
        model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)


def shorten(cfg, batch_size):
    """One iteration, then two images of the validation set."""
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=1, val_interval=1)
    cfg.log_processor = dict(by_epoch=False)
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint = None
    cfg.param_scheduler = None
    for loader, size in ((cfg.train_dataloader, batch_size), (cfg.val_dataloader, 1)):
        loader.update(num_workers=0, persistent_workers=False, batch_size=size)
    cfg.val_dataloader.dataset.indices = 2
    lighten(cfg.model)


class Recorder(Hook):
    """Keeps the backbone's weights from before the step, and what was predicted."""

    def before_train(self, runner):
        self.before = {name: value.clone() for name, value in weights(runner).items()}
        self.predictions = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.after = {name: value.clone() for name, value in weights(runner).items()}

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.predictions += outputs


def weights(runner):
    return {name: value.detach() for name, value in runner.model.backbone.named_parameters()}


def check_step_and_predictions(cfg, tmp_path):
    """Runs a shortened config: the loss is finite, the step moves weights, images get results."""
    runner, recorder = Runner.from_cfg(cfg), Recorder()
    runner.register_hook(recorder)
    runner.train()

    (scalars,) = tmp_path.glob("*/vis_data/scalars.json")
    # a hook may have reported before
    *_, step, validation = map(json.loads, scalars.read_text().splitlines())
    assert math.isfinite(step["loss"]) and step["loss"] > 0
    assert 0 <= validation[METRICS[cfg.default_scope]] <= 100
    assert len(recorder.predictions) == 2
    changed = [
        not torch.equal(recorder.before[name], recorder.after[name]) for name in recorder.before
    ]
    # drop path may take a branch, and with it the gradient, away from all images of a batch
    assert sum(changed) > 0.7 * len(changed)
    return runner


@pytest.mark.parametrize("name", PUBLISHED)
def test_published(name, benchmarks, tmp_path, monkeypatch):
    monkeypatch.chdir(benchmarks.parent)
    cfg = inherit(f"vmamba/{name}", tmp_path)
    shorten(cfg, batch_size=2)
    factor = 4 if cfg.default_scope == "mmpretrain" else 8
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.pipeline = shrink(loader.dataset.pipeline, factor)
    if cfg.default_scope == "mmseg":
        cfg.model.data_preprocessor.size = divide(cfg.model.data_preprocessor.size, factor)
    if cfg.optim_wrapper.type == "AmpOptimWrapper":
        # MMEngine's mixed precision wants a GPU
        cfg.optim_wrapper.type = "OptimWrapper"
        del cfg.optim_wrapper.loss_scale
    runner = check_step_and_predictions(cfg, tmp_path)
    averaged = [hook for hook in runner.hooks if type(hook).__name__ == "EMAHook"]
    assert bool(averaged) == ("tiny-s1l8_8xb128" in name)


@pytest.mark.parametrize("name", DEMO)
def test_demo(name, data, tmp_path, monkeypatch):
    monkeypatch.chdir(data.parent)
    cfg = inherit(f"demo/{name}", tmp_path)
    shorten(cfg, batch_size=4)
    check_step_and_predictions(cfg, tmp_path)


def test_every_config_is_tested():
    configs = (ROOT / "configs").glob("[!_]*/*.py")
    assert sorted(path.stem for path in configs) == sorted(PUBLISHED + DEMO)


@pytest.mark.parametrize(
    "name", [*(f"vmamba/{n}" for n in PUBLISHED), *(f"demo/{n}" for n in DEMO)]
)
def test_by_path_and_by_name(name, root, tmp_path):
    """Both forms say the same, but for the scopes that MMEngine notes in the second."""
    by_path = Config.fromfile(root / "configs" / f"{name}.py")
    by_name = inherit(name, tmp_path)

    def bare(value):
        if isinstance(value, dict):
            return {key: bare(item) for key, item in value.items() if key != "_scope_"}
        return [bare(item) for item in value] if isinstance(value, (list, tuple)) else value

    for key in by_path:
        if key != "visualizer":
            assert bare(by_name[key]) == bare(by_path[key]), key
