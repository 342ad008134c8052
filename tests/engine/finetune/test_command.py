"""Fine-tuning from the command line: trained, tested, resumed and refused; the page's commands."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader

from mmvssm import scheme
from mmvssm.engine import cli
from mmvssm.engine.finetune.command import processes
from mmvssm.families import arch_names

ROOT = Path(__file__).resolve().parents[3]
MICRO = ROOT / "tests" / "tools" / "configs"
PAGE = (ROOT / "docs" / "finetuning.md").read_text()
# one epoch in which the weights keep their initial values
STILL = ("--epochs", 1, "--lr", 1e-12)


def plain_text(cfg):
    return "\n".join(f"{name} = {value!r}" for name, value in cfg.to_dict().items())


@pytest.fixture(autouse=True)
def in_place(request, tmp_path, monkeypatch):
    """Runs tools in an empty folder; what they set must not outlive the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(Runner, "_log_env", lambda runner, env_cfg: None)
    if not request.node.get_closest_marker("slow"):
        # formatting the configs for log and work folder costs more than the training
        monkeypatch.setattr(Config, "pretty_text", property(plain_text))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a tool in this process; returns its output."""

    def start(tool, *args):
        monkeypatch.setattr(sys, "argv", [tool, *map(str, args)])
        capsys.readouterr()
        runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
        return capsys.readouterr().out

    return start


@pytest.fixture
def train(run, tmp_path):
    """Trains a micro network; returns output and work folder."""

    def start(config, *args, name="run", settings=()):
        # MMEngine keeps one visualizer per name for the whole process
        label = f"{tmp_path.name}-{name}"
        names = f"visualizer.name={label}", f"experiment_name={label}", "randomness.seed=0"
        out = run(
            "train.py", MICRO / config, "--work-dir", name, *args,
            "--cfg-options", *names, "train_dataloader.num_workers=0", *settings,
        )  # fmt: skip
        return out, tmp_path / name

    return start


@pytest.fixture
def refusal(run, capsys):
    """Return the message with which a training is refused."""

    def start(*args):
        with pytest.raises(SystemExit) as stop:
            run("train.py", *args)
        if stop.value.code == 2:
            return capsys.readouterr().err.splitlines()[-1]
        assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
        return stop.value.code

    return start


def weights(path, part):
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return {key: value for key, value in state.items() if key.startswith(part)}


def assert_close(tuned, start):
    """Assert that the weights are the initial ones, up to a tiny learning rate."""
    assert start.keys() == tuned.keys()
    for key, value in start.items():
        torch.testing.assert_close(tuned[key], value, rtol=1e-5, atol=1e-7)


def gives(run, config, checkpoint, metric):
    """Return whether a test with only a config and a checkpoint writes a metric."""
    run("test.py", config, checkpoint, "--work-dir", f"tested-{config.stem}")
    return any(
        metric in path.read_text() for path in Path(f"tested-{config.stem}").glob("*/*.json")
    )


def test_from_photos_to_detector_and_segmentor(train, run, photos, boxes, maps):
    """A classifier is tuned, tested by its config in the work folder, and starts the dense ones."""
    out, folder = train("cls.py", "--data", photos, "--epochs", 2, "--from", "scratch")
    assert "3 classes (cat, dog, owl), 6 images to train on, 2 to validate on." in out
    assert "Training: 2 epochs of 6 images in batches of 4, learning rate 0.00025." in out
    start = folder / "epoch_2.pth"
    assert weights(start, "head.fc.weight")["head.fc.weight"].shape == (3, 64)
    assert gives(run, folder / "cls.py", start, "accuracy/top1")

    trunk = weights(start, "backbone.stages.0.")
    for config, data, metric in (("det.py", boxes, "coco/segm_mAP"), ("seg.py", maps, "mIoU")):
        out, folder = train(config, "--data", data, *STILL, "--from", start, name=config)
        assert f"Starting from the weights of {start}" in out
        assert_close(weights(folder / "epoch_1.pth", "backbone.stages.0."), trunk)
        assert gives(run, folder / config, folder / "epoch_1.pth", metric)
    # the segmentor of iterations has become one of epochs
    assert Config.fromfile(folder / "seg.py").train_cfg.type == "EpochBasedTrainLoop"


def test_detector_from_a_detector(train, boxes):
    """All weights that do not depend on the number of classes are loaded, heads included."""
    cfg = Config.fromfile(MICRO / "det.py")  # of three classes
    init_default_scope("mmdet")
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), "start.pth")
    _, folder = train("det.py", "--data", boxes, *STILL, "--from", "start.pth")
    tuned = folder / "epoch_1.pth"
    for part in ("backbone.stages.", "neck.", "rpn_head.", "roi_head.bbox_head.shared_fcs."):
        assert_close(weights(tuned, part), weights("start.pth", part))
    assert weights(tuned, "roi_head.bbox_head.fc_cls.bias")[
        "roi_head.bbox_head.fc_cls.bias"
    ].shape == (3,)


def test_head_is_kept_by_load_from(train, photos):
    """A setting of the user's own is left alone."""
    cfg = Config.fromfile(MICRO / "cls.py")
    init_default_scope("mmpretrain")
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), "start.pth")
    _, folder = train("cls.py", "--data", photos, *STILL, settings=["load_from=start.pth"])
    assert_close(weights(folder / "epoch_1.pth", "head."), weights("start.pth", "head."))


@pytest.mark.parametrize(
    ("launcher", "variables", "expected"),
    [
        ("none", dict(WORLD_SIZE="4", RANK="1"), (1, 0)),
        ("pytorch", dict(WORLD_SIZE="4", RANK="1"), (4, 1)),
        ("slurm", dict(SLURM_NTASKS="16", SLURM_PROCID="15"), (16, 15)),
        ("mpi", dict(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0"), (2, 0)),
    ],
)
def test_processes_are_counted(launcher, variables, expected, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes(launcher) == expected


def test_resumed_as_if_uninterrupted(train, photos):
    args = ("--data", photos, "--epochs", 3, "--from", "scratch")
    _, whole = train("cls.py", *args, name="whole")
    _, part = train("cls.py", *args, name="part")
    (part / "epoch_3.pth").unlink()
    (part / "last_checkpoint").write_text(str(part / "epoch_2.pth"))
    train("cls.py", *args, "--resume", name="part")
    ends = [weights(folder / "epoch_3.pth", "") for folder in (whole, part)]
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_epochs_alone_shorten_a_recipe(train, photos):
    """On the recipe's own data, here a repeated set of photos."""
    settings = [
        f"{loader}.dataset.data_root={photos}" for loader in ("train_dataloader", "val_dataloader")
    ]
    out, folder = train("cls.py", "--epochs", 1, settings=settings)
    assert "Training: 1 epochs of 6 images in batches of 4" in out
    assert (folder / "epoch_1.pth").is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "photos"], "argument --data: needs --epochs N"),
        (["--data", "photos", "--epochs", "0"], "argument --epochs: must be at least 1, got 0"),
        (["--lr", "1e-3"], "argument --lr: needs --epochs N"),
        (["--epochs", "1", "--lr", "-1"], "argument --lr: must be positive, got -1.0"),
        (["--val-images", "val"], "argument --val-images: needs --data DIR"),
        (["--data", "absent", "--epochs", "1"], "--data: there is no data folder 'absent'"),
        (
            ["--data", "photos", "--epochs", "1"],
            "name a file with --from FILE, or start from random weights with --from scratch",
        ),
        (["--data", "photos", "--epochs", "1", "--from", "absent.pth"], "no checkpoint file"),
        (["--data", "photos", "--epochs", "1", "--from", "other.pth"], "holds no weights"),
        (["--data", "photos", "--epochs", "1", "--from", "part.pth"], "of its weights are missing"),
        (["--data", "photos", "--epochs", "1", "--from", "wide.pth"], "does not fit the backbone"),
        (
            ["--data", "photos", "--epochs", "1", "--cfg-options", "model.head.num_classes=None",
             "default_scope=mmpose"],
            "got 'mmpose'",
        ),
    ],
)  # fmt: skip
def test_refusals(refusal, photos, args, message):
    torch.save(dict(state_dict={"layer1.weight": torch.zeros(3)}), "other.pth")
    norm = "backbone.norm3.weight"
    torch.save(dict(state_dict={norm: torch.zeros(64)}), "part.pth")
    torch.save(dict(state_dict={norm: torch.zeros(65)}), "wide.pth")
    assert message in refusal(MICRO / "cls.py", *args)


def test_images_that_the_recipe_passes_over(refusal, boxes):
    """Its filter skips images of less than 32 pixels, and the data have none larger."""
    settings = ["--cfg-options", "train_dataloader.dataset.dataset.filter_cfg.min_size=33"]
    args = ["--data", boxes, "--epochs", 1, "--from", "scratch", *settings]
    assert "no image is left to train on" in refusal(MICRO / "det.py", *args)


def test_shortened_recipe_is_told_the_keys(refusal):
    recipe = ROOT / "configs" / "vmamba" / "vmamba-tiny-s1l8_8xb128_in1k.py"
    message = refusal(recipe, "--cfg-options", "train_cfg.max_epochs=2")
    assert "param_scheduler.1 (CosineAnnealingLR) begins at 20, but training ends at 2" in message
    assert "--epochs N" in message


def released(path, map_location=None):
    """Random weights in place of a released file."""
    family, arch = arch_names()[path.removeprefix("mmvssm://")]
    backbone = family.backbone(arch, out_indices=(3,))
    return {f"backbone.{key}": value for key, value in backbone.state_dict().items()}


BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    shlex.split(line)[1:]
    for block in BLOCKS
    for line in block.replace("\\\n", "").splitlines()
    if "tools/train.py" in line and "configs/demo" not in line
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_of_the_page(command, run, photos, boxes, maps, monkeypatch):
    """Up to the training itself, for which the networks are too large here."""
    scans = boxes.with_name("scans")
    scans.mkdir()
    (scans / "pictures").symlink_to(boxes / "train")
    (scans / "labelled.json").symlink_to(boxes / "annotations" / "instances_train.json")
    monkeypatch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))
    monkeypatch.setattr(scheme, "load_from_mmvssm", released)
    monkeypatch.setattr(cli, "require_weights", lambda cfg: None)
    seen = []

    class Stand:
        def __init__(self, cfg):
            seen.append(cfg)

        def train(self):
            pass

    monkeypatch.setattr(cli, "build_runner", Stand)
    config = ROOT / command[1]
    out = run("train.py", config, *command[2:])
    (cfg,) = seen
    epochs = int(command[command.index("--epochs") + 1])
    assert cfg.train_cfg.max_epochs == epochs and f"Training: {epochs} epochs of" in out
    start = cfg.model.backbone.init_cfg
    assert start.checkpoint == "mmvssm://vmamba-tiny-s1l8" and start.prefix == "backbone."
    if "--lr" in command:
        assert cfg.optim_wrapper.optimizer.lr == 1e-4 and cfg.train_dataloader.batch_size == 6
    assert "shows" not in out


def test_page_shows_commands_of_each_task():
    assert len(COMMANDS) == 5
    trees = re.findall(r"```text\n(\w+)\n", PAGE)
    assert trees == ["photos", "boxes", "maps"]


def test_config_of_the_page(photos):
    """It trains three classes for 20 epochs, with a schedule that a stock script can build."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    Path("own.py").write_text(example)
    cfg = Config.fromfile("own.py")
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == 3
    assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin < cfg.train_cfg.max_epochs
    assert cfg.optim_wrapper.optimizer.lr == 1e-4 and cfg.custom_hooks[0].momentum == 0.01
    cfg.merge_from_dict({"optim_wrapper.type": "OptimWrapper"})
    cfg.model.backbone.update(
        arch=dict(embed_dims=8, depths=(1, 1, 1, 1)), init_cfg=None, type="mmvssm.VMamba"
    )
    cfg.model.head.in_channels = 64
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.num_workers, loader.persistent_workers = 0, False
    # its validation has a folder for each class
    (photos / "val" / "cat").mkdir()
    (photos / "train" / "cat" / "cat 0.jpg").rename(photos / "val" / "cat" / "cat 0.jpg")
    cfg.work_dir, cfg.train_cfg.max_epochs = "own", 3
    cfg.experiment_name = cfg.visualizer.name = "config of the page"
    Runner.from_cfg(cfg).train()
    assert Path("own/epoch_3.pth").is_file()


@pytest.mark.slow
def test_demo_of_the_page():
    """The commands to try, word for word."""
    (block,) = (block for block in BLOCKS if "make_demo_data" in block)
    for name in ("configs", "tools"):
        Path(name).symlink_to(ROOT / name)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    for line in block.replace("\\\n", "").splitlines():
        done = subprocess.run(
            [sys.executable, *shlex.split(line)[1:]],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert "coco/segm_mAP_50" in done.stdout and Path("tuned/seg/epoch_1.pth").is_file()
