"""``python -m mmvssm.ops --self-test``, on tiny scans."""

import json
import sys
from functools import partial

import pytest
import torch

from mmvssm import ops
from mmvssm.ops import __main__ as command
from mmvssm.ops import self_test
from mmvssm.ops.problems import Scan


@pytest.fixture
def run(monkeypatch, tmp_path, one_thread):
    """Function: exit status of the command, and what it wrote."""
    small = Scan("small", 1, 8, 2, 4, 4, 2)
    monkeypatch.setattr(self_test, "_CPU_SCANS", [(small, torch.float32)])
    monkeypatch.setattr(self_test, "_PATIENCE", 0.001)
    problems = list(self_test._awkward())
    assert {name.split()[0] for name, _ in problems} == {"sequences", "routes"}
    few = [
        ("sequences", lambda: self_test._sequences(1, 2, 3, 2, 9)),
        ("routes", lambda: self_test._routes(1, 9, 3, 2, 2, 2, "separate")),
    ]
    monkeypatch.setattr(self_test, "_awkward", lambda: few)
    file = tmp_path / "report.json"

    def run_command():
        monkeypatch.setattr(sys, "argv", ["ops", "--self-test", "--out", str(file)])
        status = command.main()
        return status, json.loads(file.read_text())

    return run_command


@pytest.mark.skipif(torch.cuda.is_available(), reason="times the GPU")
def test_report_without_a_gpu(run, capsys):
    status, report = run()
    said = capsys.readouterr().out
    assert status == 0
    assert "no GPU is visible to torch" in said and "0 failed" in said
    assert report["facts"]["torch"] == torch.__version__ and report["gpu"] is None
    paths = {"torch", *(p for p in ("cpu",) if p in ops.built_devices())}
    checks = report["checks"]
    assert {(row["path"], row["dtype"]) for row in checks} == {
        (path, dtype) for path in paths for dtype in ("float32", "float16", "bfloat16")
    }
    assert all(row["passed"] and row["output_error"] < 1e-5 for row in checks)
    rows = report["results"]
    assert {(row["path"], row["form"], row["pass"]) for row in rows} == {
        (path, form, way)
        for path in paths
        for form in ("routes", "sequences")
        for way in ("forward", "backward")
    }
    assert all(row["time_us"] > 0 and row["kind"] == "measured" for row in rows)
    assert all(row["floor_us"] is None and row["ratio"] is None for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="times the GPU")
def test_wrong_results_are_seen(run, monkeypatch, capsys):
    def wrong(*args, **kwargs):
        return ops.selective_scan(*args, **kwargs) * 1.0001

    monkeypatch.setattr(self_test, "selective_scan", wrong)
    status, report = run()
    assert status == 1
    assert {row["passed"] for row in report["checks"] if "sequences" in row["shape"]} == {False}
    assert {row["passed"] for row in report["checks"] if "routes" in row["shape"]} == {True}
    assert "WRONG" in capsys.readouterr().out


def test_times_stand_beside_floors(run, monkeypatch, capsys):
    """As on a GPU: with a device of known rates, and another package's kernel timed as well."""
    small = Scan("small", 1, 8, 2, 4, 4, 2)
    monkeypatch.setattr(self_test, "_GPU_SCANS", [(small, torch.bfloat16)])
    monkeypatch.setattr(self_test, "_paths", lambda device: {"cuda": "not built", "torch": ""})
    monkeypatch.setattr(self_test, "_mamba_ssm", lambda: partial(ops.selective_scan))
    rows = list(self_test._timings(dict(device="cpu", bandwidth=1e9, special=1e9)))
    assert [(r["form"], r["path"], r["pass"]) for r in rows] == [
        (form, path, way)
        for form, path in (("routes", "torch"), ("sequences", "torch"), ("sequences", "mamba_ssm"))
        for way in ("forward", "backward")
    ]
    for row in rows:
        floor = small.floor_us(row["pass"] == "backward", 2, 4, bandwidth=1e9, special=1e9)
        assert row["floor_us"] == floor and row["ratio"] == row["time_us"] / floor
    assert capsys.readouterr().out.count("small") == len(rows)


def test_paths_of_a_gpu(monkeypatch):
    monkeypatch.setattr(self_test, "compiled_missing", lambda index: "not built")
    monkeypatch.setattr(self_test.nvrtc, "missing_reason", lambda index: "")
    assert self_test._paths("cuda") == {"cuda": "not built", "nvrtc": "", "torch": ""}


def test_folder_must_exist(monkeypatch, capsys, tmp_path):
    out = tmp_path / "absent" / "report.json"
    monkeypatch.setattr(sys, "argv", ["ops", "--self-test", "--out", str(out)])
    with pytest.raises(SystemExit):
        command.main()
    assert f"there is no folder '{out.parent}'" in capsys.readouterr().err


def test_floors_of_the_published_models():
    """Bytes and exponentials of one layer, as counted by hand for the design."""
    v0, v2 = self_test._VMAMBA_V0[0], self_test._VMAMBA_V2[0]
    assert v0.traffic(False, 4, 4) == pytest.approx(3.90e9, rel=5e-3)
    assert v0.special() == pytest.approx(5.55e9, rel=5e-3)
    assert v2.traffic(False, 2, 4) == pytest.approx(1.24e9, rel=1e-2)
    assert v2.special() == pytest.approx(0.46e9, rel=1e-2)
    assert v2.traffic(True, 2, 4) == pytest.approx(1.86e9, rel=1e-2)
    rates = dict(bandwidth=4.3e12, special=132 * 16 * 1.98e9)
    assert v0.floor_us(False, 4, 4, **rates) == pytest.approx(1327, rel=5e-3)
    assert v2.floor_us(False, 2, 4, **rates) == pytest.approx(288, rel=1e-2)
