"""Curves from logs: every supported kind of log, resumed runs, and the tool."""

import json
import math
from pathlib import Path

import pytest

from mmvssm.analysis import read_curves

TOOL = Path(__file__).resolve().parents[2] / "tools" / "analysis_tools" / "curves.py"


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text) + "\n")
    return path


def points(curve):
    return dict(zip(curve.steps, curve.values))


def trained(epoch, iteration, loss):
    return dict(lr=0.1, time=1.0, loss=loss, epoch=epoch, iter=iteration, step=iteration)


def test_scalars_of_mmengine_by_epoch(tmp_path):
    """Ten iterations per epoch, of which every fifth is logged."""
    lines = [trained(1, 5, 4.0), trained(1, 10, 3.0), {"accuracy/top1": 20.0, "time": 1, "step": 1}]
    lines += [trained(2, 15, 2.0), trained(2, 20, 1.0), {"accuracy/top1": 60.0, "step": 2}]
    found = read_curves(write(tmp_path / "scalars.json", *lines))
    assert set(found) == {"loss", "accuracy/top1"}
    assert points(found["loss"]) == {0.5: 4, 1: 3, 1.5: 2, 2: 1}
    assert points(found["accuracy/top1"]) == {1: 20, 2: 60}
    assert found["loss"].unit == found["accuracy/top1"].unit == "epoch"


def test_scalars_of_mmengine_by_iteration(tmp_path):
    lines = [dict(loss=2.0, iter=50, step=50), dict(loss=1.0, iter=100, step=100)]
    found = read_curves(write(tmp_path / "a.json", *lines, dict(mIoU=40.0, step=100)))
    assert points(found["loss"]) == {50: 2, 100: 1} and points(found["mIoU"]) == {100: 40}
    assert found["mIoU"].unit == "iter"


def test_a_resumed_run_takes_the_place_of_what_was_lost(tmp_path):
    folder = tmp_path / "work"
    write(
        folder / "1/vis_data/scalars.json",
        *(trained(epoch, 10 * epoch, 10.0 + epoch) for epoch in (1, 2, 3)),
        '{"loss": 9.0, "ep',  # killed
    )
    write(
        folder / "2/vis_data/scalars.json",
        *(trained(epoch, 10 * epoch, 20.0 + epoch) for epoch in (2,)),
    )
    assert points(read_curves(folder)["loss"]) == {1: 11, 2: 22}


HEAD = "2026/11/27 18:07:20 - mmengine - INFO - "


def test_text_of_mmengine(tmp_path):
    path = write(
        tmp_path / "a.log",
        HEAD + "Epoch(train)  [1][ 50/100]  lr: 1.0e-04  eta: 1:02:03  time: 0.1  loss: 1.5000"
        "  loss_rpn_cls: 0.7500",
        HEAD + "Epoch(train)  [1][100/100]  lr: 1.0e-04  eta: 0:00:00  time: 0.1  loss: nan",
        HEAD + "Saving checkpoint at 1 epochs",
        HEAD + "Epoch(val) [1][25/25]    coco/bbox_mAP: 0.2750  coco/bbox_mAP_50: 0.4000",
    )
    found = read_curves(path)
    assert set(found) == {"loss", "loss_rpn_cls", "coco/bbox_mAP", "coco/bbox_mAP_50"}
    assert found["loss"].steps == (0.5, 1) and found["loss"].values[0] == 1.5
    assert math.isnan(found["loss"].values[1])
    assert found["loss"].as_dict()["values"] == [1.5, None]
    assert points(found["coco/bbox_mAP"]) == {1: 0.275}


def test_text_of_mmengine_by_iteration(tmp_path):
    path = write(
        tmp_path / "a.log",
        HEAD + "Iter(train) [ 50/160000]  lr: 1.0e-04  loss: 3.0  decode.acc_seg: 40.5",
        HEAD + "Iter(train) [100/160000]  lr: 1.0e-04  loss: 2.0  decode.acc_seg: 50.5",
        HEAD + "Iter(val) [250/250]    aAcc: 70.0  mIoU: 33.3  mAcc: 44.4  time: 0.1",
    )
    found = read_curves(path)
    assert points(found["loss"]) == {50: 3, 100: 2} and points(found["mIoU"]) == {100: 33.3}
    assert points(found["decode.acc_seg"])[50] == 40.5 and "time" not in found


def test_logs_of_mmcv(tmp_path):
    """Iterations count within an epoch."""
    text = write(
        tmp_path / "a.log",
        "2022-01-01 00:00:00,000 - mmdet - INFO - Epoch [1][5/10]\tlr: 1e-04, eta: 0:01:00, "
        "time: 0.5, memory: 5000, loss_cls: 0.5000, loss: 2.0000, grad_norm: 3.0",
        "2022-01-01 00:00:00,000 - mmdet - INFO - Epoch [1][10/10]\tlr: 1e-04, loss: 1.5000",
        "2022-01-01 00:00:00,000 - mmdet - INFO - Epoch(val) [1][625]\tbbox_mAP: 0.1230, x_m: 0.2",
    )
    entries = [
        dict(env_info="...", seed=0),
        *(
            dict(mode="train", epoch=epoch, iter=i, lr=1e-4, loss=2.0 / epoch)
            for epoch in (1, 2)
            for i in (5, 10)
        ),
        dict(mode="val", epoch=1, iter=625, lr=1e-4, bbox_mAP=0.123),
    ]
    lines = read_curves(write(tmp_path / "a.log.json", *entries))
    found = read_curves(text)
    assert points(found["loss"]) == {0.5: 2, 1: 1.5}
    assert points(found["bbox_mAP"]) == points(lines["bbox_mAP"]) == {1: 0.123}
    assert points(lines["loss"]) == {0.5: 2, 1: 2, 1.5: 1, 2: 1}


def test_text_of_swin(tmp_path):
    """Both accuracies are printed in the same way; the line after them tells which is which."""
    head = "[2024-03-01 00:00:00 vssm1_tiny_0230s] (main.py 389): INFO "
    lines = []
    for epoch, (top1, ema) in enumerate([(10.5, 0.25), (30.5, 12.0)]):
        for step in (0, 5):
            lines.append(
                f"{head}Train: [{epoch}/300][{step}/10]\teta 1:00:00 lr 0.001000\t wd 0.0500\t"
                f"time 0.5 (0.6)\tloss 6.{step}000 ({6 - epoch}.{step}500)\tgrad_norm 1.0 (2.0)\t"
                "loss_scale 65536.0000 (65536.0000)\tmem 20000MB"
            )
        lines.append(f"{head}EPOCH {epoch} training takes 0:10:00")
        for accuracy, best in ((top1, ""), (ema, " ema")):
            lines.append(f"{head}Test: [0/98]\tTime 1.0 (1.0)\tLoss 2.0 (2.0)\tAcc@1 77.0 (77.0)")
            lines.append(f"{head} * Acc@1 {accuracy:.3f} Acc@5 {2 * accuracy:.3f}")
            lines.append(f"{head}Accuracy of the network on the 50000 test images: {accuracy:.1f}%")
            lines.append(f"{head}Max accuracy{best}: {accuracy:.2f}%")
    found = read_curves(write(tmp_path / "a.txt", *lines))
    assert points(found["loss"]) == {0.1: 6.05, 0.6: 6.55, 1.1: 5.05, 1.6: 5.55}
    assert points(found["accuracy/top1"]) == {1: 10.5, 2: 30.5}
    assert points(found["ema/accuracy/top1"]) == {1: 0.25, 2: 12}
    assert points(found["ema/accuracy/top5"]) == {1: 0.5, 2: 24}


def test_text_of_timm(tmp_path):
    """A test counts batches up to the last index; every line has means over the batches so far."""
    lines = []
    for epoch, losses in enumerate((("6.93", "6.91"), ("6.5", "6.25"))):
        for step, loss in zip((0, 9), losses):
            lines.append(
                f"Train: {epoch} [{step:>4d}/10 ({100 * step / 9:>3.0f}%)]  Loss: 6.999 ({loss})  "
                "Time: 0.5s, 2048.00/s  (0.5s, 2048.00/s)  LR: 1.000e-03  Data: 0.010 (0.010)"
            )
        for suffix, top1 in (("", 10.5 + epoch), (" (EMA)", 0.5 + epoch)):
            for step, seen in ((0, 99.0), (48, top1)):
                lines.append(
                    f"Test{suffix}: [{step:>4d}/48]  Time: 1.000 (1.000)  "
                    f"Loss:  6.0000 ({epoch + 3.5:>6.4f})  Acc@1: 50.0000 ({seen:>7.4f})  "
                    f"Acc@5: 60.0000 ({2 * seen:>7.4f})"
                )
    found = read_curves(write(tmp_path / "a.log", "*** training", *lines, "Test: [   0/48]  Time"))
    assert points(found["loss"]) == {0.1: 6.93, 1: 6.91, 1.1: 6.5, 2: 6.25}
    assert points(found["accuracy/top1"]) == {1: 10.5, 2: 11.5}
    assert points(found["accuracy/top5"]) == {1: 21, 2: 23}
    assert points(found["test_loss"]) == {1: 3.5, 2: 4.5}
    assert points(found["ema/accuracy/top1"]) == {1: 0.5, 2: 1.5}


def test_text_of_local_mamba(tmp_path):
    head = "00:00:00 INFO "
    lines = [head + "Model local_vim created, params: 7.994 M, FLOPs: 1.480 G"]
    for epoch, loss in enumerate((6.9, 6.5)):
        lines.append(
            f"{head}Train: {epoch} [ 624/625] Loss: 6.999 ({loss}) LR: 1.000e-06 Mem: 30000 "
            "Time: 0.50s (0.60s) Data: 0.01s"
        )
        for suffix, top1 in (("", 10.25 + epoch), ("(EMA)", 0.1 + epoch)):
            for step, seen in ((0, 99.0), (97, top1)):
                lines.append(
                    f"{head}Test{suffix}: {epoch} [{step:>4d}/98] Loss: 6.000 (5.500) Top-1: "
                    f"50.000% ({seen:.3f}%) Top-5: 60.000% ({2 * seen:.3f}%) Time: 0.10s"
                )
        lines += [head + "Checkpoints:", "        experiments/checkpoint-0.pth.tar : 10.250%"]
    found = read_curves(write(tmp_path / "log_local_vim_tiny.txt", *lines))
    assert points(found["loss"]) == {1: 6.9, 2: 6.5}
    assert points(found["accuracy/top1"]) == {1: 10.25, 2: 11.25}
    assert points(found["ema/accuracy/top1"]) == {1: 0.1, 2: 1.1}
    assert points(found["ema/accuracy/top5"]) == {1: 0.2, 2: 2.2}
    assert points(found["test_loss"]) == {1: 5.5, 2: 5.5}


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("summary.csv", "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr"),
        ("metrics.csv", "epoch,train_loss,test_loss,top1,top5"),
    ],
)
def test_tables(tmp_path, name, header):
    """Resumed after the second epoch; the interrupted run left a truncated row."""
    last = ",0.001" if header.endswith("lr") else ""
    rows = [f"0,6.9,6.5,1.5,5.0{last}", f"1,6.5,6.0,9.5,20.0{last}", "2,6.1"]
    found = read_curves(write(tmp_path / name, header, *rows, header, f"2,6,5.5,19,40{last}"))
    assert set(found) == {"loss", "test_loss", "accuracy/top1", "accuracy/top5"}
    assert points(found["loss"]) == {1: 6.9, 2: 6.5, 3: 6}
    assert points(found["accuracy/top1"]) == {1: 1.5, 2: 9.5, 3: 19}
    assert points(found["test_loss"])[3] == 5.5


def test_lines_of_deit(tmp_path):
    lines = [
        dict(train_lr=1e-3, train_loss=6.5, test_loss=6.0, test_acc1=1.5, test_acc5=5.0,
             epoch=0, n_parameters=7),
        dict(train_lr=1e-3, train_loss=5.5, test_loss=5.0, test_acc1=9.5, test_acc5=20.0,
             epoch=1, n_parameters=7),
    ]  # fmt: skip
    found = read_curves(write(tmp_path / "log.txt", *lines))
    assert set(found) == {"loss", "test_loss", "accuracy/top1", "accuracy/top5"}
    assert points(found["accuracy/top1"]) == {1: 1.5, 2: 9.5}
    assert points(found["loss"]) == {1: 6.5, 2: 5.5}


def test_refuses(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no log"):
        read_curves(tmp_path / "absent.txt")
    with pytest.raises(FileNotFoundError, match="has no "):
        read_curves(tmp_path)
    with pytest.raises(ValueError, match="no curves in a known log format"):
        read_curves(write(tmp_path / "a.txt", "Epoch 1 of 2: fine"))


def test_tool(tmp_path, run_tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(
        Path("work/1/vis_data/scalars.json"), trained(1, 10, 2.0), {"accuracy/top1": 9, "step": 1}
    )
    write(Path("log.txt"), dict(train_loss=6.5, test_acc1=1.5, epoch=0))
    options = ["--labels", "ours", "theirs", "--out", "a.json", "a.png", "a.svg"]
    status, streams = run_tool(TOOL, "work", "log.txt", *options)
    assert status == 0, status
    assert "wrote a.svg" in streams.out
    found = json.loads(Path("a.json").read_text())
    assert found["theirs"]["accuracy/top1"] == dict(
        name="accuracy/top1", unit="epoch", steps=[1.0], values=[1.5]
    )
    assert found["ours"]["loss"]["values"] == [2.0]
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in Path("a.svg").read_text()


def test_tool_refuses(tmp_path, run_tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("log.txt"), dict(train_loss=6.5, test_acc1=1.5, epoch=0))
    assert "no log has mIoU" in run_tool(TOOL, "log.txt", "--keys", "mIoU")[0]
    assert "there is no log 'absent'" in run_tool(TOOL, "absent")[0]
    status, streams = run_tool(TOOL, "log.txt", "--labels", "a", "b")
    assert status == 2 and "--labels must name all" in streams.err
