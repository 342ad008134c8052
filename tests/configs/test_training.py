"""Every config is read in every form, builds, trains for a step and predicts, on its own pipeline.

The step of each family's smallest networks belongs to the default run, that of the others, which
differ in size alone, to the slow tests.
"""

import copy
import json
import math
import os
import re
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

import mmvssm  # makes `mmvssm::` known to MMEngine

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
DEMO = sorted(path.stem for path in (ROOT / "configs" / "demo").glob("*.py"))
PUBLISHED = sorted(
    path.relative_to(ROOT / "configs").with_suffix("").as_posix()
    for path in (ROOT / "configs").glob("*/*.py")
    if path.parent.name not in ("_base_", "demo", "options")
)
SMALLEST = ("nano", "tiny", "tiny-m2", "tiny-mid-cls", "tiny-s1l8", "tiny-stride8", "v0-tiny")
SMALLEST += ("v3-tiny",)
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def family_of(name):
    return name.partition("/")[0].replace("_", "-")


def arch_of(name):
    """`tiny-s1l8` of `vmamba/mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco`."""
    return name.partition("/")[2].partition(f"{family_of(name)}-")[2].partition("_")[0]


def marks_of(name):
    marks = [] if arch_of(name) in SMALLEST else [pytest.mark.slow]
    if "large3" in name:  # 740 million weights, their gradients, averages and moments
        reason = "needs a machine of 40 GB of memory"
        marks.append(pytest.mark.skipif(MEMORY < 40e9, reason=reason))
    return marks


METRICS = {"mmpretrain": "accuracy/top1", "mmdet": "coco/bbox_mAP_50", "mmseg": "mIoU"}
SIZES = ("scale", "scales", "crop_size", "size", "stride", "img_scale", "window_sizes")


def shrink(value, factor):
    """Divide all sizes in pipelines and the like, however deeply nested."""
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


@cache
def read_by_name(name):
    with NamedTemporaryFile("w", suffix=".py") as file:
        file.write(f"_base_ = 'mmvssm::{name}.py'\n")
        file.flush()
        return Config.fromfile(file.name)


def inherit(name, tmp_path):
    """Return the config as inherited by a user's file with `_base_ = 'mmvssm::...'`."""
    cfg = copy.deepcopy(read_by_name(name))
    cfg.work_dir = str(tmp_path)
    # MMEngine keeps one visualizer per name for the whole process
    cfg.experiment_name = cfg.visualizer.name = tmp_path.name
    return cfg


def lighten(model):
    """Make heads thinner and proposals fewer, and keep boxes of low score."""
    if model.type == "EncoderDecoder":
        model.decode_head.channels = model.auxiliary_head.channels = 32
    if model.type == "CascadeRCNN":
        for head, part in zip(model.roi_head.bbox_head, model.train_cfg.rcnn):
            head.fc_out_channels, part.sampler.num = 64, 32
        model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    if model.type == "RetinaNet":
        model.neck.out_channels = model.bbox_head.in_channels = model.bbox_head.feat_channels = 32
        model.test_cfg.update(score_thr=0.0, max_per_img=5)
    if model.type in ("MaskRCNN", "CascadeRCNN"):
        roi, rcnn = model.roi_head, model.train_cfg.rcnn
        model.neck.out_channels = model.rpn_head.in_channels = model.rpn_head.feat_channels = 32
        roi.bbox_roi_extractor.out_channels = roi.mask_roi_extractor.out_channels = 32
        for head in roi.bbox_head if isinstance(roi.bbox_head, list) else [roi.bbox_head]:
            head.update(in_channels=32, conv_out_channels=32, fc_out_channels=64)
        roi.mask_head.update(in_channels=32, conv_out_channels=32)
        for part in rcnn if isinstance(rcnn, list) else [rcnn]:
            part.sampler.num = 32
        model.train_cfg.rpn_proposal.max_per_img = model.test_cfg.rpn.max_per_img = 50
        model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)


def shorten(cfg, batch_size):
    """Shorten to one iteration, then two images of the validation set."""
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=1, val_interval=1)
    cfg.log_processor = dict(by_epoch=False)
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint = None
    cfg.param_scheduler = cfg.load_from = None
    cfg.model.backbone.init_cfg = None  # random weights, not the released ones
    cfg.randomness = dict(seed=0)
    for loader, size in ((cfg.train_dataloader, batch_size), (cfg.val_dataloader, 1)):
        loader.update(num_workers=0, persistent_workers=False, batch_size=size)
    cfg.val_dataloader.dataset.indices = 2
    lighten(cfg.model)


class Recorder(Hook):
    """Records which of the backbone's weights the step changes, and the predictions."""

    def before_train(self, runner):
        self.before = {name: value.clone() for name, value in weights(runner).items()}
        self.predictions = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.moved = [
            not torch.equal(self.before[name], value) for name, value in weights(runner).items()
        ]

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.predictions += outputs


def weights(runner):
    return {name: value.detach() for name, value in runner.model.backbone.named_parameters()}


@pytest.fixture
def check_step_and_predictions(monkeypatch, tmp_path):
    """Runs a shortened config: the loss is finite, the step moves weights, images get results."""
    # What costs more than the step: notes on machine and config, initial values.
    monkeypatch.setattr(Config, "pretty_text", "not formatted")
    monkeypatch.setattr(Runner, "_log_env", lambda runner, env_cfg: None)
    monkeypatch.setattr(Runner, "_init_model_weights", lambda runner: None)

    def check(cfg):
        runner, recorder = Runner.from_cfg(cfg), Recorder()
        runner.register_hook(recorder)
        runner.train()

        (scalars,) = tmp_path.glob("*/vis_data/scalars.json")
        # a hook may have reported before
        *_, step, validation = map(json.loads, scalars.read_text().splitlines())
        assert math.isfinite(step["loss"]) and step["loss"] > 0
        assert 0 <= validation[METRICS[cfg.default_scope]] <= 100
        assert len(recorder.predictions) == 2
        # drop path may drop a branch, and with it the gradient, for all images of a batch
        assert sum(recorder.moved) > 0.7 * len(recorder.moved)
        return runner

    return check


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in PUBLISHED])
def test_published(name, benchmarks, tmp_path, monkeypatch, check_step_and_predictions):
    monkeypatch.chdir(benchmarks.parent)
    cfg = inherit(name, tmp_path)
    shorten(cfg, batch_size=2)
    factor = 4 if cfg.default_scope == "mmpretrain" else 8
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.pipeline = shrink(loader.dataset.pipeline, factor)
    for part in ("data_preprocessor", "test_cfg", "backbone"):
        if cfg.default_scope != "mmpretrain":
            cfg.model[part] = shrink(cfg.model[part], factor)
    if cfg.default_scope == "mmdet" and cfg.model.data_preprocessor.pad_size_divisor > 32:
        cfg.model.data_preprocessor.pad_size_divisor //= factor
    if cfg.optim_wrapper.type == "AmpOptimWrapper":
        # MMEngine's mixed precision needs a GPU
        cfg.optim_wrapper.type = "OptimWrapper"
    runner = check_step_and_predictions(cfg)
    hooks = [type(hook).__name__ for hook in runner.hooks]
    custom = [hook.type.split(".")[-1] for hook in cfg.get("custom_hooks") or []]
    assert set(custom) <= set(hooks) and ("EMAHook" in hooks) == ("EMAHook" in custom)


@pytest.mark.parametrize("name", DEMO)
def test_demo(name, data, tmp_path, monkeypatch, check_step_and_predictions):
    monkeypatch.chdir(data.parent)
    cfg = inherit(f"demo/{name}", tmp_path)
    shorten(cfg, batch_size=4)
    check_step_and_predictions(cfg)


@pytest.mark.parametrize("name", [*PUBLISHED, *(f"demo/{name}" for name in DEMO)])
def test_every_form_says_the_same(name, root, tmp_path):
    """By path, by name and by `config_path`, except for scopes that MMEngine adds by name."""
    path = root / "configs" / f"{name}.py"
    assert Path(mmvssm.config_path(f"{name}.py")).samefile(path)
    by_path = Config.fromfile(path)
    by_name = inherit(name, tmp_path)

    def bare(value):
        if isinstance(value, dict):
            return {key: bare(item) for key, item in value.items() if key != "_scope_"}
        return [bare(item) for item in value] if isinstance(value, (list, tuple)) else value

    for key in by_path:
        if key != "visualizer":
            assert bare(by_name[key]) == bare(by_path[key]), key

    assert by_path.model.backbone.get("init_cfg") == start_of(name, by_path)
    init_default_scope(by_name.default_scope)
    with torch.device("meta"):
        backbone = MODELS.build(by_name.model).backbone
    assert type(backbone).__module__.startswith("mmvssm.")


def start_of(name, cfg):
    """Return the weights that a dense model starts from: its arch's released classifier."""
    if name.startswith("demo/") or cfg.default_scope == "mmpretrain":
        return None
    variant = f"{family_of(name)}-{arch_of(name)}"
    file = variant + ("-dp05" if variant == "vmamba-v0-base" else "")
    if variant.startswith(("vim-", "msvmamba-")) and "-v3-" not in variant:
        file += "?weights=online"
    return dict(type="Pretrained", prefix="backbone.", checkpoint=f"mmvssm://{file}")


def test_names():
    """Base names are unique, as `mim` needs, and contain the family that the folder names."""
    stems = [*DEMO, *(name.partition("/")[2] for name in PUBLISHED)]
    assert len(set(stems)) == len(stems)
    for name in PUBLISHED:
        detector = "(cascade-)?mask-rcnn_|retinanet_"
        assert re.fullmatch(rf"\w[\w-]*/({detector})?{family_of(name)}-[\w-]+", name)
