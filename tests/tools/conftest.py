"""Tiny data sets for the tools, and the tools as subprocesses."""

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from forked import run_program

ROOT = Path(__file__).resolve().parents[2]
COLORS = {"red": (40, 40, 220), "green": (40, 220, 40), "blue": (220, 40, 40)}  # BGR, as cv2


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(90, 160, (height, width, 3), dtype=np.uint8)


def _make_classification(folder: Path, rng: np.random.Generator) -> None:
    for split, count in (("train", 4), ("val", 2)):
        for name, color in COLORS.items():
            for number in range(count):
                image = _noise(rng, 32, 32)
                y, x = rng.integers(0, 20, 2)
                image[y : y + 12, x : x + 12] = color
                _write(folder / split / name / f"{name}{number}.png", image)


def _make_scenes(det: Path, seg: Path, rng: np.random.Generator, height=64, width=56) -> None:
    """Write four images with a square of each color, for both detection and segmentation."""
    images, annotations = [], []
    for number in range(4):
        image, labels = _noise(rng, height, width), np.zeros((height, width), np.uint8)
        for label, color in enumerate(COLORS.values(), start=1):
            size = int(rng.integers(16, 28))
            y, x = (int(v) for v in rng.integers(0, (height - size, width - size)))
            image[y : y + size, x : x + size] = color
            labels[y : y + size, x : x + size] = label
            corners = [x, y, x + size, y, x + size, y + size, x, y + size]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=number,
                    category_id=label,
                    bbox=[x, y, size, size],
                    area=size * size,
                    segmentation=[corners],
                    iscrowd=0,
                )
            )
        name = f"scene{number}.png"
        images.append(dict(id=number, file_name=name, height=height, width=width))
        _write(det / "images" / name, image)
        _write(seg / "images" / name, image)
        _write(seg / "labels" / name, labels)
    categories = [dict(id=label, name=name) for label, name in enumerate(COLORS, start=1)]
    (det / "annotations.json").write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder to run the tools in, with the data sets in ``data`` and the configs next to it."""
    folder = tmp_path_factory.mktemp("tools")
    rng = np.random.default_rng(0)
    _make_classification(folder / "data/cls", rng)
    _make_scenes(folder / "data/det", folder / "data/seg", rng)
    for config in (Path(__file__).parent / "configs").glob("*.py"):
        shutil.copy(config, folder)
    return folder


@pytest.fixture(scope="session")
def environment() -> dict:
    """The variables of the subprocesses: this checkout and interpreter, one thread, no GPU."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


class Tools:
    """Starts tools in one folder."""

    def __init__(self, folder: Path, environment: dict) -> None:
        self.folder = folder
        self.environment = environment

    def command(self, tool: str, *args: object) -> list[str]:
        runner = sys.executable if tool.endswith(".py") else "bash"
        return [runner, str(ROOT / "tools" / tool), *map(str, args)]

    def start(self, tool: str, *args: object, **variables: str) -> subprocess.Popen:
        """Start a tool with its output, standard error included, in a pipe."""
        return subprocess.Popen(
            self.command(tool, *args),
            cwd=self.folder,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, tool: str, *args: object, status: int = 0, **variables: str) -> str:
        """Run a tool to its end, which must have the given status, and return its output."""
        if tool.endswith(".py") and not variables:
            _, *words = self.command(tool, *args)
            returned, output = run_program(words, self.folder, self.environment)
        else:
            process = self.start(tool, *args, **variables)
            output, _ = process.communicate(timeout=300)
            returned = process.returncode
        assert returned == status, output
        return output

    def load(self, path: str) -> dict:
        """Load a checkpoint that a tool saved."""
        return torch.load(self.folder / path, map_location="cpu", weights_only=True)

    def scalars(self, work_dir: str, key: str) -> list[float]:
        """Return the values logged for ``key`` by all runs in a work folder, oldest first."""
        lines = []
        for log in sorted((self.folder / work_dir).glob("*/vis_data/scalars.json")):
            lines += [json.loads(line) for line in log.read_text().splitlines()]
        return [line[key] for line in lines if key in line]


@pytest.fixture
def free_port() -> str:
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="session")
def tools(place, environment) -> Tools:
    return Tools(place, environment)


SEED = ("--cfg-options", "randomness.seed=7")


@pytest.fixture(scope="session")
def cls_checkpoint(tools) -> str:
    """Three epochs of classification, uninterrupted; ``--work-dir`` left to its default."""
    tools.run("train.py", "cls.py", *SEED)
    return "work_dirs/cls/epoch_3.pth"


@pytest.fixture(scope="session")
def seg_checkpoint(tools) -> str:
    """Six iterations of segmentation, uninterrupted."""
    tools.run("train.py", "seg.py", *SEED)
    return "work_dirs/seg/iter_6.pth"


@pytest.fixture(scope="session")
def det_checkpoint(tools) -> str:
    """One epoch of detection."""
    tools.run("train.py", "det.py", *SEED)
    return "work_dirs/det/epoch_1.pth"


@pytest.fixture
def run_here(monkeypatch, capsys, tmp_path):
    """Runs a tool in this process and an empty folder; returns exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    # what a tool changes of it must not outlive the test
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}

    def run(tool, *arguments):
        monkeypatch.setattr(sys, "argv", [str(tool), *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(str(tool), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        finally:
            for number, handler in handlers.items():
                if signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
