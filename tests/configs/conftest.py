"""Fixtures: little demo data, and the same pixels laid out as ImageNet, COCO and ADE20K."""

import importlib.util
import json
import shutil
from pathlib import Path

import cv2
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.registry import PARAM_SCHEDULERS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", name="root")
def root_fixture():
    return ROOT


@pytest.fixture(scope="session")
def tool():
    """The module of the data tool, with few canvases."""
    spec = importlib.util.spec_from_file_location(
        "make_demo_data", ROOT / "tools" / "make_demo_data.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.NUM_CANVASES = {"train": 12, "val": 6}
    return module


@pytest.fixture(scope="session")
def data(tool, tmp_path_factory):
    """The folder of the three data sets."""
    folder = tmp_path_factory.mktemp("demo") / "data"
    for task in ("cls", "det", "seg"):
        tool.make_data_set(folder, task, seed=0)
    return folder


@pytest.fixture(scope="session")
def benchmarks(data, tmp_path_factory):
    """A folder `data` with the digits in the layout of the three benchmarks."""
    folder = tmp_path_factory.mktemp("benchmarks") / "data"
    imagenet, coco = folder / "imagenet", folder / "coco"
    ade = folder / "ade" / "ADEChallengeData2016"

    imagenet.mkdir(parents=True)
    for split in ("train", "val"):
        (imagenet / split).symlink_to(data / "digits-cls" / split)
    (imagenet / "meta").mkdir()
    for split in ("train", "val"):
        files = sorted((imagenet / split).glob("*/*0.png"))
        lines = [f"{file.relative_to(imagenet / split)} {file.parent.name}" for file in files]
        (imagenet / "meta" / f"{split}.txt").write_text("\n".join(lines))

    (coco / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (coco / f"{split}2017").symlink_to(data / "digits-det" / split)
        name = f"annotations/instances_{split}"
        content = json.loads((data / "digits-det" / f"{name}.json").read_text())
        names = CocoDataset.METAINFO["classes"]
        content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
        (coco / f"{name}2017.json").write_text(json.dumps(content))

    shutil.copytree(data / "digits-seg", ade)
    for file in ade.glob("images/*/*.png"):
        cv2.imwrite(str(file.with_suffix(".jpg")), cv2.imread(str(file)))
    return folder


@pytest.fixture(scope="session", name="learning_rates")
def learning_rates_fixture():
    def learning_rates(cfg, epoch_length, steps):
        """Return the learning rate at each iteration in `steps`, stepped as by the runner."""
        lr = cfg.optim_wrapper.optimizer.lr
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
        length = cfg.train_cfg.get("max_epochs") or cfg.train_cfg.max_iters
        schedulers = []
        for item in cfg.param_scheduler:
            item = dict(item, optimizer=optimizer)
            item.setdefault("end", length)
            if item.get("by_epoch", True) and item.pop("convert_to_iter_based", False):
                item.update(convert_to_iter_based=True, epoch_length=epoch_length)
            schedulers.append(PARAM_SCHEDULERS.build(item))
        schedulers.sort(key=lambda scheduler: scheduler.by_epoch)
        rates = {}
        for step in range(max(steps) + 1):
            if step in steps:
                rates[step] = optimizer.param_groups[0]["lr"]
            optimizer.step()
            for scheduler in schedulers:
                if not scheduler.by_epoch or (step + 1) % epoch_length == 0:
                    scheduler.step()
        return rates

    return learning_rates
