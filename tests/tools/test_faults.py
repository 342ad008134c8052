"""Faults in training: killed at any moment, damaged files, a full disk, two runs at once."""

import os
import shutil
import signal
import subprocess

import pytest
import torch

SEED = ("--cfg-options", "randomness.seed=7")
#: A config whose training kills itself, and the module that it imports for that.
KILLED = """
_base_ = "cls.py"
custom_imports = dict(imports=["kill_here"])
custom_hooks = [dict(type="KillHere")]
"""
MODULE = """
import os, signal
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmvssm.engine.resume import WholeFileBackend

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

whole = WholeFileBackend.put
def cut_off(self, obj, filepath):
    if os.environ["KILL_IN"] == Path(filepath).name:
        open(f"{filepath}.part", "wb").write(obj[: len(obj) // 2])
        kill()
    whole(self, obj, filepath)

if os.environ.get("KILL_IN", "").endswith(".pth"):
    WholeFileBackend.put = cut_off

@HOOKS.register_module(force=True)
class KillHere(Hook):
    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if os.environ.get("KILL_IN") == f"val {runner.epoch}" and batch_idx == 1:
            kill()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if os.environ.get("KILL_IN") == f"train {runner.iter}":
            kill()
"""


@pytest.fixture
def killed(tools):
    """A config whose training KILL_IN ends."""
    (tools.folder / "killed.py").write_text(KILLED)
    (tools.folder / "kill_here.py").write_text(MODULE)
    return "killed.py"


def start(tools, *args, status, **variables):
    variables["PYTHONPATH"] = f"{tools.folder}:{tools.environment['PYTHONPATH']}"
    return tools.run("train.py", *args, status=status, **variables)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill_in", "resumed"),
    [
        ("train 4", "resumed epoch: 1, iter: 3"),  # in the second of three epochs
        ("epoch_2.pth", "resumed epoch: 1, iter: 3"),  # half written
        ("val 2", "resumed epoch: 2, iter: 6"),  # after the second
    ],
)
def test_a_killed_run_loses_one_interval_at_most(tools, cls_checkpoint, killed, kill_in, resumed):
    folder = f"killed-{kill_in.replace(' ', '-')}"
    args = (killed, "--work-dir", folder)
    start(tools, *args, *SEED, status=-signal.SIGKILL, KILL_IN=kill_in)
    output = start(tools, *args, "--resume", status=0, KILL_IN="nowhere")
    assert resumed in output
    assert tools.scalars(folder, "loss")[-1] == tools.scalars("work_dirs/cls", "loss")[-1]
    ends = [tools.load(path) for path in (cls_checkpoint, f"{folder}/epoch_3.pth")]
    for part in ("state_dict", "optimizer"):
        torch.testing.assert_close(ends[0][part], ends[1][part], rtol=0, atol=0)


@pytest.mark.slow
def test_one_seed_gives_the_same_bits(tools, cls_checkpoint):
    tools.run("train.py", "cls.py", "--work-dir", "again", *SEED)
    assert tools.scalars("again", "loss") == tools.scalars("work_dirs/cls", "loss")
    assert tools.scalars("again", "accuracy/top1") == tools.scalars(
        "work_dirs/cls", "accuracy/top1"
    )
    ends = [tools.load(path) for path in (cls_checkpoint, "again/epoch_3.pth")]
    for part in ("state_dict", "optimizer"):
        torch.testing.assert_close(ends[0][part], ends[1][part], rtol=0, atol=0)


@pytest.mark.slow
def test_the_checkpoint_before_a_damaged_one_is_used(tools, cls_checkpoint):
    shutil.copytree(tools.folder / "work_dirs/cls", tools.folder / "damaged")
    newest = tools.folder / "damaged/epoch_3.pth"
    newest.write_bytes(newest.read_bytes()[:-1000])
    (tools.folder / "damaged/last_checkpoint").write_text(str(newest))
    output = tools.run("train.py", "cls.py", "--work-dir", "damaged", "--resume")
    assert f"Skipping a damaged checkpoint: '{newest}' is cut off" in output
    assert "resumed epoch: 2, iter: 6" in output
    ends = [tools.load(path) for path in (cls_checkpoint, "damaged/epoch_3.pth")]
    torch.testing.assert_close(ends[0]["state_dict"], ends[1]["state_dict"], rtol=0, atol=0)


def last_line(output):
    return output.strip().splitlines()[-1]


def test_a_folder_that_cannot_be_written(tools):
    folder = tools.folder / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    command = tools.command("train.py", "cls.py", "--work-dir", "read-only")
    if os.geteuid() == 0:  # root is not bound by permissions
        if not shutil.which("setpriv"):
            pytest.skip("needs setpriv to run as root without root's rights")
        command = ["setpriv", "--bounding-set", "-dac_override", *command]
    done = subprocess.run(
        command, cwd=tools.folder, env=tools.environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "train.py: error: the work folder 'read-only' cannot be written (Permission denied):"
        " choose another with --work-dir"
    )
    assert "Traceback" not in done.stderr
    output = tools.run("train.py", "cls.py", "--work-dir", "cls.py/below", status=1)
    assert "the work folder 'cls.py/below' cannot be written (Not a directory)" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_full_disk(tools, cls_checkpoint):
    limited = f"ulimit -f 100; exec {' '.join(tools.command('train.py', 'cls.py'))}"  # 100 KiB
    done = subprocess.run(
        ["bash", "-c", f"{limited} --work-dir full"],
        cwd=tools.folder,
        env=tools.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert last_line(done.stderr) == (
        "train.py: error: the work folder 'full' cannot be written any more (File too large):"
        " free disk space, and continue with --resume"
    )
    assert list((tools.folder / "full").glob("*.pth")) == []
    assert list((tools.folder / "full").glob(".*.part")) == []


@pytest.mark.slow
def test_two_trainings_in_one_folder(tools):
    forever = ("--cfg-options", "train_cfg.max_epochs=100000", "train_cfg.val_interval=100000")
    first = tools.start("train.py", "cls.py", "--work-dir", "shared", *forever)
    for line in first.stdout:
        if "Epoch(train)" in line:
            break
    output = tools.run("train.py", "cls.py", "--work-dir", "shared", status=1)
    assert last_line(output) == (
        "train.py: error: another training writes to the work folder 'shared' (process"
        f" {first.pid} on {os.uname().nodename}): choose another with --work-dir, or wait until"
        " it ends"
    )
    first.kill()
    first.wait()
    first.stdout.close()
    # the lock went with the process
    end = ("--cfg-options", "train_cfg.max_epochs=1")
    tools.run("train.py", "cls.py", "--work-dir", "shared", *end)
