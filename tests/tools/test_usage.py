"""Messages of the tools on wrong input, and what the shell scripts start."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from abilities import without_noise

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ["dist_train.sh", "dist_test.sh", "slurm_train.sh", "slurm_test.sh"]


@pytest.fixture
def refusal(place, monkeypatch, capsys):
    """Runs a tool in this process until it exits with an error; returns the message."""
    monkeypatch.chdir(place)
    # The tools set these variables, which must not outlive the test.
    for name in ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv("RANK", raising=False)

    def run(tool, *args):
        monkeypatch.setattr(sys, "argv", [tool, *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
        if stop.value.code == 2:
            return capsys.readouterr().err
        assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
        return stop.value.code

    return run


@pytest.fixture(scope="module")
def empty_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "empty.pth"
    torch.save(dict(state_dict={}, meta={}), path)
    return path


def test_refusal_is_one_sentence_and_status_1(tools):
    output = without_noise(tools.run("train.py", "absent.py", status=1))
    assert output == "train.py: error: there is no config file 'absent.py'\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["absent.py"], "there is no config file 'absent.py'"),
        (["orphan.py"], "'orphan.py' inherits a file that does not exist"),
        (["cls.py", "--cfg-options", "data_root"], "expected KEY=VALUE, got 'data_root'"),
        (
            ["cls.py", "--cfg-options", "val_dataloader.dataset.pipeline.7.x=1"],
            "--cfg-options do not fit 'cls.py'",
        ),
        (["cls.py", "--launcher", "horovod"], "invalid choice: 'horovod'"),
        (["cls.py", "--launcher", "pytorch"], "start with tools/dist_*.sh"),
        (["cls.py", "--resume", "absent.pth"], "there is no checkpoint file 'absent.pth'"),
        (["det.py", "--auto-scale-lr"], "auto_scale_lr=dict(base_batch_size=N) in 'det.py'"),
        (
            ["seg.py", "--cfg-options", "train_dataloader.dataset.data_root=nowhere"],
            "there is no data folder 'nowhere' (train_dataloader of the config)",
        ),
        (
            ["det.py", "--cfg-options", "train_dataloader.dataset.dataset.data_root=nowhere"],
            "there is no data folder 'nowhere'",
        ),
        (
            ["seg.py", "--amp", "--cfg-options", "optim_wrapper.type=OtherWrapper"],
            "the config's is OtherWrapper",
        ),
    ],
)
def test_train_refuses(refusal, place, args, message):
    (place / "orphan.py").write_text("_base_ = 'absent_base.py'\n")
    assert message in refusal("train.py", *args)


def test_configs_may_inherit_ours_by_scope(refusal, place):
    """The base is found; the run stops because its data are missing."""
    (place / "heir.py").write_text("_base_ = 'mmvssm::demo/vmamba-micro_digits-cls.py'\n")
    assert "there is no data folder 'data/digits-cls'" in refusal("train.py", "heir.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("config", ["cls.py", "seg.py"], ids=["without type", "with type"])
def test_train_refuses_amp_without_gpu(refusal, config):
    assert refusal("train.py", config, "--amp").endswith("but there is none")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out-item", "pred"], "--out-item needs --out"),
        (["--out", "metrics.txt", "--out-item", "metrics"], "got 'metrics.txt'"),
        (["--out", "folder"], "--out must end in .pkl to save predictions, got 'folder'"),
        (["--interval", "0"], "--interval must be at least 1"),
        (["--tta", "--show-dir", "show"], "cannot be combined with --tta"),
        (["--cfg-options", "default_scope=mmocr", "--tta"], "got 'mmocr'"),
        (["--cfg-options", "test_dataloader.dataset.data_root=nowhere"], "no data folder"),
        (["--cfg-options", "test_evaluator=None"], "'cls.py' has no test_evaluator"),
        ([], "the checkpoint does not fit the config"),
    ],
)
def test_test_refuses(refusal, empty_checkpoint, args, message):
    assert message in refusal("test.py", "cls.py", empty_checkpoint, *args)


def test_test_refuses_absent_checkpoint(refusal):
    assert "no checkpoint file 'absent.pth'" in refusal("test.py", "cls.py", "absent.pth")


def test_segmentation_tta_needs_a_pipeline(refusal, empty_checkpoint, place):
    (place / "plain_seg.py").write_text("_base_ = 'seg.py'\ntta_pipeline = None\n")
    message = refusal("test.py", "plain_seg.py", empty_checkpoint, "--tta")
    assert "needs a tta_pipeline in 'plain_seg.py'" in message


@pytest.fixture
def started(tmp_path):
    """Runs a script with a stand-in for the program it starts; returns the arguments of that."""

    def run(script, *args, **variables):
        for name in ("srun", "python"):
            program = tmp_path / name
            program.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$PYTHONPATH" "$0" "$@"\n')
            program.chmod(0o755)
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(ROOT / "tools" / script), *map(str, args)],
            env={"PATH": path, **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        python_path, program, *arguments = done.stdout.splitlines()
        assert python_path == str(ROOT)
        return Path(program).name, arguments

    return run


def test_dist_train_starts_torchrun(started):
    program, arguments = started(
        "dist_train.sh", "my config.py", 4, "--cfg-options", "a=[1, 2]",
        NNODES="2", NODE_RANK="1", PORT="1234", MASTER_ADDR="node0",
    )  # fmt: skip
    assert program == "python"
    assert arguments == [
        "-m", "torch.distributed.run", "--nnodes=2", "--node_rank=1", "--master_addr=node0",
        "--master_port=1234", "--nproc_per_node=4", str(ROOT / "tools/train.py"),
        "--launcher", "pytorch", "my config.py", "--cfg-options", "a=[1, 2]",
    ]  # fmt: skip


def test_dist_test_starts_torchrun(started):
    program, arguments = started("dist_test.sh", "c.py", "w.pth", 2, "--tta")
    assert program == "python"
    assert arguments == [
        "-m", "torch.distributed.run", "--nnodes=1", "--node_rank=0", "--master_addr=127.0.0.1",
        "--master_port=29500", "--nproc_per_node=2", str(ROOT / "tools/test.py"),
        "--launcher", "pytorch", "c.py", "w.pth", "--tta",
    ]  # fmt: skip


def test_slurm_train_starts_srun(started):
    program, arguments = started(
        "slurm_train.sh", "part", "job", "c.py", "work dir", "--amp", "--resume",
        GPUS="16", CPUS_PER_TASK="3", SRUN_ARGS="--time=1:00 --exclusive",
    )  # fmt: skip
    assert program == "srun"
    assert arguments == [
        "-p", "part", "--job-name=job", "--gres=gpu:8", "--ntasks=16", "--ntasks-per-node=8",
        "--cpus-per-task=3", "--kill-on-bad-exit=1", "--time=1:00", "--exclusive",
        "python", "-u", str(ROOT / "tools/train.py"), "--launcher=slurm",
        "c.py", "--work-dir=work dir", "--amp", "--resume",
    ]  # fmt: skip


def test_slurm_test_starts_srun(started):
    program, arguments = started("slurm_test.sh", "part", "job", "c.py", "w.pth", "--tta", GPUS="2")
    assert program == "srun"
    assert arguments == [
        "-p", "part", "--job-name=job", "--gres=gpu:2", "--ntasks=2", "--ntasks-per-node=2",
        "--cpus-per-task=5", "--kill-on-bad-exit=1", "python", "-u",
        str(ROOT / "tools/test.py"), "--launcher=slurm", "c.py", "w.pth", "--tta",
    ]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_show_their_usage(script):
    command = ["bash", str(ROOT / "tools" / script)]
    wrong = subprocess.run([*command, "config.py"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith(f"usage: tools/{script} ")
    asked = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert (asked.returncode, asked.stdout) == (0, wrong.stderr)


@pytest.mark.parametrize(
    "args", [["dist_train.sh", "c.py", "two"], ["dist_test.sh", "c.py", "w.pth", "0"]]
)
def test_number_of_processes_must_be_positive(args):
    script, *rest = args
    done = subprocess.run(
        ["bash", str(ROOT / "tools" / script), *rest], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
