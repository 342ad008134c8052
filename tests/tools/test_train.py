"""tools/train.py: exact resuming, and what its options change."""

import signal

import pytest
import torch
from mmengine.config import Config


@pytest.fixture
def kill_and_resume(tools):
    """Start training, kill it when a line appears, resume it in another process."""

    def run(config, work_dir, kill_at, start, resume):
        process = tools.start("train.py", config, "--work-dir", work_dir, *start)
        for line in process.stdout:
            if kill_at in line:
                break
        process.kill()
        assert process.wait() == -signal.SIGKILL, f"ended before {kill_at!r} was logged"
        process.stdout.close()
        return tools.run("train.py", config, "--work-dir", work_dir, "--resume", *resume)

    return run


def assert_same_end(tools, one, other):
    """Assert that two runs end with the same loss, weights and optimizer, bit for bit."""
    (dir_one, file), dir_other = one, other
    losses = [tools.scalars(folder, "loss")[-1] for folder in (dir_one, dir_other)]
    assert losses[0] == losses[1]
    ends = [tools.load(f"{folder}/{file}") for folder in (dir_one, dir_other)]
    for part in ("state_dict", "optimizer"):
        torch.testing.assert_close(ends[0][part], ends[1][part], rtol=0, atol=0)


def test_resume_after_kill_in_mid_epoch(tools, cls_checkpoint, kill_and_resume):
    seed = ["--cfg-options", "randomness.seed=7"]
    output = kill_and_resume("cls.py", "killed/cls", "Epoch(train) [2][2/3]", seed, seed)
    assert "resumed epoch: 1, iter: 3" in output
    assert "Epoch(train) [1]" not in output
    assert_same_end(tools, ("work_dirs/cls", "epoch_3.pth"), "killed/cls")


def test_resume_by_iteration_takes_over_the_seed(tools, seg_checkpoint, kill_and_resume):
    seed = ["--cfg-options", "randomness.seed=7"]
    output = kill_and_resume("seg.py", "killed/seg", "Iter(train) [3/6]", seed, [])
    assert "resumed epoch: 0, iter: 2" in output
    assert_same_end(tools, ("work_dirs/seg", "iter_6.pth"), "killed/seg")


def test_detection_trains_and_validates(tools, det_checkpoint):
    # 4 images, repeated twice, in batches of 2
    assert len(tools.scalars("work_dirs/det", "loss_mask")) == 4
    assert len(tools.scalars("work_dirs/det", "coco/segm_mAP")) == 1


def test_two_gloo_processes(tools, free_port):
    output = tools.run(
        "dist_train.sh", "seg.py", 2, "--work-dir", "dist", "--no-validate", "--auto-scale-lr",
        "--cfg-options", "work_dir=elsewhere", "train_cfg.max_iters=2",
        PORT=free_port,
    )  # fmt: skip
    assert "2 processes run on the CPU (gloo backend)" in output
    assert "SyncBN needs GPUs: using BN" in output
    # --cfg-options are applied first, so --work-dir takes precedence.
    assert not (tools.folder / "elsewhere").exists()
    saved = tools.load("dist/iter_2.pth")
    config = Config.fromstring(saved["meta"]["cfg"], ".py")
    assert config.train_cfg.max_iters == 2
    # The batch of 2 x 2 is half the config's base.
    assert tools.scalars("dist", "lr") == [0.0005, 0.0005]
    assert config.val_dataloader is None
    assert tools.scalars("dist", "mIoU") == []


@pytest.mark.gpu
def test_amp_trains_with_loss_scaling(tools):
    tools.run("train.py", "cls.py", "--amp", "--work-dir", "amp", CUDA_VISIBLE_DEVICES="0")
    saved = tools.load("amp/epoch_3.pth")
    assert saved["optimizer"]["loss_scaler"]["scale"] > 1
