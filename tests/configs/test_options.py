"""Training options, each applied to configs in every form and run by the tools."""

import argparse
import inspect
import json
import math
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine._strategy.deepspeed import DeepSpeedStrategy
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from abilities import needs_sharding, needs_whole_graphs
from mmvssm.engine import ChannelsLastHook, runtime
from mmvssm.engine.cli import load_config
from mmvssm.models.layers.block import CheckpointedBlock
from mmvssm.options import option_names, read_option

ROOT = Path(__file__).resolve().parents[2]
CLS, DET, SEG = (
    f"demo/{name}.py"
    for name in (
        "vmamba-micro_digits-cls",
        "mask-rcnn_vmamba-micro_digits-det",
        "vmamba-micro_upernet_digits-seg",
    )
)
PUBLISHED = (
    "vmamba/vmamba-tiny-s1l8_8xb128_in1k.py",
    "vmamba/mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco.py",
    "vmamba/vmamba-tiny-s1l8_upernet_4xb4-160k_ade20k-512x512.py",
)
# Two iterations of a few images, the network wide awake: no warm-up, no drop path.
SHORT = (
    "train_cfg.max_epochs=1",
    "train_dataloader.batch_size=4",
    "train_dataloader.num_workers=0",
    "train_dataloader.persistent_workers=False",
    "train_dataloader.dataset.indices=8",
    "default_hooks.logger.interval=1",
    "param_scheduler=None",
    "model.backbone.drop_path_rate=0.0",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch, one_thread):
    """Skips logging of machine and config, which takes longer than the steps."""
    monkeypatch.setattr(Config, "pretty_text", "not formatted")
    monkeypatch.setattr(Runner, "_log_env", lambda runner, env_cfg: None)


@pytest.fixture
def train(data, tmp_path, monkeypatch):
    """Runs tools/train.py in this process, next to the demo data; returns the work folder."""
    monkeypatch.chdir(data.parent)
    monkeypatch.setenv("LOCAL_RANK", "0")

    def run(config, *args, folder=tmp_path / "run", settings=(), validate=False):
        path = config if Path(config).is_absolute() else ROOT / "configs" / config
        # MMEngine keeps one visualizer per name for the whole process
        names = f"visualizer.name={folder}", f"experiment_name={folder}"
        words = [path, "--work-dir", folder, *([] if validate else ["--no-validate"]), *args]
        words += ["--cfg-options", *SHORT, "randomness.seed=0", *names, *settings]
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
        runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")
        return folder

    return run


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plain") / "run"


@pytest.fixture
def plain(train, plain_folder):
    """The work folder of a training without options, run once."""
    return plain_folder if plain_folder.exists() else train(CLS, folder=plain_folder)


@pytest.fixture
def refused(train):
    def run(*args, **kwargs):
        with pytest.raises(SystemExit) as stop:
            train(*args, **kwargs)
        assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
        return stop.value.code

    return run


def scalars(folder, key):
    (log,) = folder.glob("*/vis_data/scalars.json")
    return [line[key] for line in map(json.loads, log.read_text().splitlines()) if key in line]


def weights(folder, name="epoch_1.pth"):
    return torch.load(folder / name, map_location="cpu", weights_only=True)["state_dict"]


def assert_same_training(one, other, tolerance):
    assert scalars(one, "loss") == pytest.approx(scalars(other, "loss"), rel=tolerance)
    ones, others = weights(one), weights(other)
    assert ones.keys() == others.keys()
    for name, value in ones.items():
        torch.testing.assert_close(value, others[name], rtol=tolerance, atol=tolerance, msg=name)


def test_names_and_page():
    """Every option has a row on the page of options, and the page names no other."""
    page = (ROOT / "docs" / "options.md").read_text()
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(rows) == option_names()
    assert {
        "amp-bf16", "amp-fp16", "channels-last", "compile", "deepspeed", "fsdp",
        "gradient-checkpointing", "layer-decay", "tensorboard",
    } <= {*option_names()}  # fmt: skip


@pytest.mark.parametrize("name", option_names())
def test_every_form_says_the_same(name, tmp_path):
    """By name, by path, and in a file that inherits by path or by name."""
    option, config = read_option(name), PUBLISHED[len(name) % 3]
    path = str(ROOT / "configs" / config)
    by_name = load_config(path, {}, [name])
    before = Config.fromfile(path)
    assert all(by_name[key] != before.get(key) for key in option)
    forms = [load_config(path, {}, [str(ROOT / "configs" / "options" / f"{name}.py")])]
    for base in (f"'{path}'", f"'mmvssm::{config}'"):
        mine = tmp_path / "mine.py"
        mine.write_text(f"_base_ = {base}\n__import__('mmvssm').add_options(globals(), {name!r})\n")
        forms.append(Config.fromfile(mine))
    for form in forms:
        assert form.keys() == by_name.keys()
        assert all(bare(form[key]) == bare(by_name[key]) for key in option)


def bare(value):
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items() if key != "_scope_"}
    return [bare(item) for item in value] if isinstance(value, (list, tuple)) else value


def test_what_no_config_sets_may_stand_in_base(tmp_path):
    """Two bases may not set the same key; compiled and sharded runs set keys of no config."""
    for name in ("compile", "fsdp"):
        mine = tmp_path / f"{name}.py"
        mine.write_text(f"_base_ = ['mmvssm::{PUBLISHED[0]}', 'mmvssm::options/{name}.py']\n")
        cfg = Config.fromfile(mine)
        for key, value in read_option(name).items():
            assert bare(cfg[key]) == value
        assert cfg.model.backbone.arch == "tiny-s1l8"


def test_lines_of_the_file_and_options_add_up(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        f"_base_ = 'mmvssm::{PUBLISHED[0]}'\n"
        "optim_wrapper = dict(optimizer=dict(lr=7.0))\n"
        "__import__('mmvssm').add_options(globals(), 'amp-bf16', 'gradient-checkpointing')\n"
    )
    cfg = Config.fromfile(mine)
    assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.dtype) == (7.0, "bfloat16")
    assert cfg.optim_wrapper.optimizer.type == "AdamW" and cfg.model.backbone.with_cp


def test_cfg_options_have_the_last_word():
    path = str(ROOT / "configs" / PUBLISHED[0])
    cfg = load_config(path, {"optim_wrapper.dtype": "float16"}, ["amp-bf16"])
    assert cfg.optim_wrapper.dtype == "float16" and cfg.optim_wrapper.loss_scale == 1.0


def test_unknown_option_lists_the_others(refused):
    message = refused(CLS, "--option", "ampere")
    assert "there is no option 'ampere'" in message
    assert all(name in message for name in option_names())
    assert "there is no option 'absent.py'" in refused(CLS, "--option", "absent.py")


def test_gradient_checkpointing_changes_no_number(plain, train, monkeypatch):
    built = []
    forward = CheckpointedBlock.forward
    monkeypatch.setattr(
        CheckpointedBlock,
        "forward",
        lambda block, *args: built.append(block.with_cp) or forward(block, *args),
    )
    assert_same_training(plain, train(CLS, "--option", "gradient-checkpointing"), 1e-6)
    assert built and all(built)


class Orders(Hook):
    """Records the memory format of images and of the maps of necks and heads."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx:
            return
        self.found = {}
        modules = dict(runner.model.named_modules())
        modules["backbone"].register_forward_hook(
            lambda module, args, out: self.found.update(image=self.order(args[0]))
        )
        for name in ("neck.fpn_convs.0.conv", "roi_head.mask_head.convs.0.conv"):
            modules[name].register_forward_hook(
                lambda module, args, out, name=name: self.found.update({name: self.order(out)})
            )

    @staticmethod
    def order(x):
        return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


@pytest.mark.parametrize("names", [[], ["channels-last"]])
def test_channels_last_reaches_images_necks_and_heads(names, data, tmp_path, monkeypatch):
    monkeypatch.chdir(data.parent)
    cfg = load_config(str(ROOT / "configs" / DET), {}, names)
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=1)
    cfg.param_scheduler = cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False, batch_size=2)
    cfg.default_hooks.checkpoint = None
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = cfg.visualizer.name = tmp_path.name
    runner, orders = Runner.from_cfg(cfg), Orders()
    runner.register_hook(orders)
    runner.train()
    assert set(orders.found.values()) == {bool(names)} and len(orders.found) == 3


def test_channels_last_trains_as_ever(plain, train):
    assert_same_training(plain, train(CLS, "--option", "channels-last"), 1e-4)


def test_channels_last_needs_a_backbone():
    class Model:
        model = nn.Linear(1, 1)

    with pytest.raises(ValueError, match="a model with a backbone, got Linear"):
        ChannelsLastHook().before_run(Model)


def test_layer_decay_lowers_the_rates_of_early_layers(train):
    """The demo's Vim has four layers: patches at depth 0, layers at 1 to 4, the rest at 5."""
    folder = train("demo/vim-micro_digits-cls.py", "--option", "layer-decay")
    saved = torch.load(folder / "epoch_1.pth", weights_only=True)
    rates = {group["param_name"]: group["lr"] for group in saved["optimizer"]["param_groups"]}
    assert rates["head.fc.weight"] == pytest.approx(2e-3)
    assert rates["backbone.layers.3.norm.weight"] == pytest.approx(2e-3 * 0.8)
    assert rates["backbone.layers.0.norm.weight"] == pytest.approx(2e-3 * 0.8**4)
    assert rates["backbone.patch_embed.conv1.weight"] == pytest.approx(2e-3 * 0.8**5)


def test_tensorboard_gets_the_curves(train):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = train(CLS, "--option", "tensorboard")
    (file,) = folder.rglob("events.out.tfevents.*")
    accumulator = events.EventAccumulator(str(file))
    accumulator.Reload()
    found = [event.value for event in accumulator.Scalars("loss")]
    assert found == pytest.approx(scalars(folder, "loss")) and len(found) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorboard", "needs TensorBoard: pip install tensorboard"),
        ("deepspeed", "needs DeepSpeed: pip install deepspeed"),
    ],
)
def test_missing_packages_are_named(refused, monkeypatch, name, message):
    monkeypatch.setattr(runtime, "find_spec", lambda package: None)
    assert message in refused(CLS, "--option", name)


def test_mixed_precision_turns_to_float32_without_a_gpu(plain, train, capfd, monkeypatch):
    monkeypatch.setattr(runtime, "get_device", lambda: "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_same_training(plain, train(CLS, "--option", "amp-fp16"), 0)
    assert "Mixed precision needs a GPU: this run computes in float32." in capfd.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="shown on the CPU")
def test_bfloat16_reaches_the_backbone(train, monkeypatch):
    seen, linear = set(), nn.Linear.forward

    def forward(layer, x):
        y = linear(layer, x)
        seen.add(y.dtype)
        return y

    monkeypatch.setattr(nn.Linear, "forward", forward)
    folder = train(CLS, "--option", "amp-bf16")
    assert torch.bfloat16 in seen
    assert all(math.isfinite(loss) for loss in scalars(folder, "loss"))
    assert {value.dtype for value in weights(folder).values()} <= {torch.float32, torch.int64}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="shown on the CPU")
def test_the_demo_learns_as_well_in_bfloat16(data, tmp_path):
    """Four epochs, in which nothing overflows."""
    accuracies = []
    for options in ((), ("--option", "amp-bf16")):
        folder = tmp_path / f"run{len(accuracies)}"
        settings = ("train_cfg.max_epochs=4", "train_dataloader.num_workers=0")
        settings += ("val_dataloader.num_workers=0", "randomness.seed=0")
        command = [sys.executable, ROOT / "tools/train.py", ROOT / "configs" / CLS]
        command += ["--work-dir", folder, *options, "--cfg-options", *settings]
        subprocess.run(list(map(str, command)), cwd=data.parent, check=True)
        assert all(math.isfinite(loss) for loss in scalars(folder, "loss"))
        accuracies.append(scalars(folder, "accuracy/top1")[-1])
    assert abs(accuracies[0] - accuracies[1]) <= 1 and accuracies[0] > 90


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["amp-bf16", "amp-fp16"])
def test_mixed_precision_on_a_gpu(train, name):
    folder = train(CLS, "--option", name)
    assert all(math.isfinite(loss) for loss in scalars(folder, "loss"))
    saved = torch.load(folder / "epoch_1.pth", weights_only=True)
    assert (saved["optimizer"]["loss_scaler"]["scale"] > 1) == (name == "amp-fp16")


@needs_whole_graphs
def test_compiled_training_is_validated(plain, train):
    """The step in graphs gives the numbers of the eager step, and validation runs as usual."""
    settings = "compile.backend=aot_eager", "val_dataloader.dataset.indices=8"
    folder = train(CLS, "--option", "compile", settings=settings, validate=True)
    assert_same_training(plain, folder, 1e-4)
    assert len(scalars(folder, "accuracy/top1")) == 1


@needs_whole_graphs
def test_compiled_training_has_plain_groups_once():
    other = dict(type="EMAHook")
    optim_wrapper = dict(type="OptimWrapper")
    cfg = Config(dict(compile=True, custom_hooks=[other], optim_wrapper=optim_wrapper))
    for _ in range(2):  # the second time as from the config that a run stores
        runtime.set_up_optimization(cfg, argparse.Namespace(launcher="none"))
        assert cfg.custom_hooks == [other, dict(type="mmvssm.PlainGroupsHook")]


def test_compiling_says_which_torch_it_needs(refused, monkeypatch):
    monkeypatch.setattr(runtime, "TRACES_ROUTES", False)
    assert "compile needs torch 2.7 or newer, this is" in refused(CLS, "--option", "compile")


@pytest.mark.slow
@needs_whole_graphs
@pytest.mark.skipif(not (shutil.which("g++") or torch.cuda.is_available()), reason="no compiler")
def test_compiled_step(plain, train):
    """The step compiled by torch's own compiler gives the numbers of the eager step."""
    assert_same_training(plain, train(CLS, "--option", "compile"), 1e-3)


# The runs share one process group: a second one, right after the first, may wait for ever.
DRIVER = """
import runpy, sys
from torch import distributed
join = distributed.init_process_group
distributed.init_process_group = lambda *args, **options: (
    distributed.is_initialized() or join(*args, **options)
)
tool, *words = sys.argv[1:]
while words:
    end = words.index("--next")
    sys.argv, words = [tool, *words[:end]], words[end + 1 :]
    runpy.run_path(tool, run_name="__main__")
"""


@pytest.fixture
def train_in_two(data, tmp_path):
    """Runs tools/train.py in two processes, once for each list of arguments."""
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "data").symlink_to(data)
    settings = [
        *SHORT, "train_cfg.max_epochs=2", "randomness.seed=0", "optim_wrapper.clip_grad.max_norm=1",
        "default_hooks.checkpoint.max_keep_ckpts=2", "log_level=WARNING",
    ]  # fmt: skip

    def run(*runs):
        words = []
        for args in runs:
            words += [ROOT / "configs" / CLS, "--launcher", "pytorch", "--no-validate", *args]
            words += ["--cfg-options", *settings, "--next"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
        done = subprocess.run(
            [sys.executable, *launch, "driver.py", ROOT / "tools" / "train.py", *words],
            cwd=tmp_path,
            env={
                **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
            },
            capture_output=True,
            text=True,
            timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    return run


def assert_same_end(one, other):
    """Two checkpoints hold the same weights, groups and moments, one of them by names."""
    whole, sharded = (torch.load(path, weights_only=True) for path in (one, other))
    assert whole["state_dict"].keys() == sharded["state_dict"].keys()
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(
            sharded["state_dict"][name], value, rtol=1e-5, atol=1e-6, msg=name
        )
    whole, sharded = whole["optimizer"], sharded["optimizer"]
    for group, named in zip(whole["param_groups"], sharded["param_groups"], strict=True):
        assert group["weight_decay"] == named["weight_decay"]
        for index, name in zip(group["params"], named["params"], strict=True):
            torch.testing.assert_close(
                sharded["state"][name], whole["state"][index], rtol=1e-4, atol=1e-6
            )


@needs_sharding
def test_fsdp_shares_out_what_ddp_repeats(train_in_two, tmp_path):
    """Two processes that hold half of the model each end as two that hold all of it, also when
    they are resumed in between."""
    fsdp = ["--option", "fsdp", "--work-dir"]
    train_in_two(
        ["--work-dir", "copies"],
        [*fsdp, "shards"],
        [*fsdp, "resumed", "--resume", "shards/epoch_1.pth"],
    )
    for name in ("shards", "resumed"):
        assert_same_end(tmp_path / "copies" / "epoch_2.pth", tmp_path / name / "epoch_2.pth")


def test_fsdp_says_what_it_cannot(refused, tmp_path, monkeypatch):
    assert "start with tools/dist_train.sh" in refused(CLS, "--option", "fsdp")
    (tmp_path / "averaged.py").write_text(
        f"_base_ = {str(ROOT / 'configs' / CLS)!r}\n"
        "custom_hooks = [dict(type='mmpretrain.EMAHook')]\n"
    )
    averaged = tmp_path / "averaged.py"
    message = refused(averaged, "--option", "fsdp", "--launcher", "pytorch")
    assert "EMAHook" in message and "--cfg-options custom_hooks=[]" in message
    monkeypatch.delattr(torch.compiler, "set_stance", raising=False)
    message = refused(CLS, "--option", "fsdp", "--launcher", "pytorch")
    assert "FSDPStrategy needs torch 2.6 or newer, this is" in message


def test_deepspeed_gets_what_the_config_says():
    """DeepSpeed is not needed to see that MMEngine's strategy would understand the config."""
    for published in PUBLISHED:
        cfg = load_config(str(ROOT / "configs" / published), {}, ["deepspeed"])
        clipping = (cfg.optim_wrapper.get("clip_grad") or {}).get("max_norm")
        runtime.set_up_deepspeed(cfg)
        strategy = dict(cfg.strategy)
        assert strategy.pop("type") == "DeepSpeedStrategy"
        assert strategy.keys() <= inspect.signature(DeepSpeedStrategy).parameters.keys()
        assert strategy.get("gradient_clipping") == clipping
        assert strategy["bf16"] == dict(enabled=True)
        kept = {"type", "_scope_", "optimizer", "paramwise_cfg", "constructor"}
        assert cfg.optim_wrapper.type == "DeepSpeedOptimWrapper"
        assert cfg.optim_wrapper.keys() <= kept


@pytest.mark.parametrize(("config", "base"), [(CLS, 64), (DET, 8), (SEG, 8)])
def test_auto_scale_lr(train, config, base):
    one = "train_dataloader.dataset.indices=2", "train_dataloader.batch_size=2"
    folder = train(config, "--auto-scale-lr", settings=one)
    assert scalars(folder, "lr") == pytest.approx([2e-3 * 2 / base])


def test_published_base_batch_size_is_the_recipe_s():
    """The batch size for which the learning rate is meant, in every family and task."""
    first = {}
    for path in sorted((ROOT / "configs").glob("[!_]*/*x*.py")):
        task = path.stem.rpartition("_")[2]
        if path.parent.name not in ("demo", "options"):
            first.setdefault((path.parent.name, task), path)
    assert len(first) >= 12
    for path in first.values():
        cfg = Config.fromfile(path)
        # as in `8xb128`; detectors' names leave out their 8xb2
        found = re.search(r"_(\d+)xb\d+[_-]", path.stem)
        devices = int(found[1]) if found else 8
        assert cfg.auto_scale_lr.base_batch_size == devices * cfg.train_dataloader.batch_size, path
