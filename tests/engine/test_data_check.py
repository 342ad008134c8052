"""A missing folder or annotation file is reported; files that may be elsewhere are not."""

import pytest
from mmengine.config import Config

from mmvssm.engine.data_check import require_data


def config(evaluator=None, **dataset):
    dataset.setdefault("type", "CustomDataset")
    cfg = dict(train_dataloader=dict(dataset=dataset))
    return Config(cfg | (dict(train_evaluator=evaluator) if evaluator else {}))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder `data` with a split and its annotations."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train.json").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("dataset", "missing", "option"),
    [
        (dict(data_root="absent"), "data folder 'absent'", "data_root=DIR"),
        (dict(data_root="data", data_prefix="val"), "data folder 'data/val'", "data_root=DIR"),
        (
            dict(data_root="data/", data_prefix=dict(img="train/", seg="val/")),
            "data folder 'data/val/'",
            "data_root=DIR",
        ),
        (dict(data_root="data", ann_file="val.json"), "annotation file 'data/val.json'", "root="),
        (dict(ann_file="data/val.json"), "annotation file 'data/val.json'", "data_root=DIR"),
        (dict(type="ImageNet", data_root="data", split="val"), "data folder 'data/val'", "root="),
        (dict(dataset=dict(data_root="absent")), "'absent'", "dataset.dataset.data_root=DIR"),
        (
            dict(datasets=[dict(data_root="data"), dict(data_root="absent")]),
            "'absent'",
            "dataset.datasets.1.data_root=DIR",
        ),
        (
            dict(data_root="data", pipeline=[dict(backend_args=dict(backend="local")), dict()],
                 ann_file="val.json"),
            "'data/val.json'",
            "data_root=DIR",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(place, dataset, missing, option):
    with pytest.raises(SystemExit) as stop:
        require_data(config(**dataset), "train_dataloader")
    message = stop.value.code
    assert "there is no " in message and "\n" not in message
    assert missing in message
    assert "(train_dataloader of the config)" in message and "docs/data.md" in message
    assert "--cfg-options train_dataloader.dataset" in message and option in message
    path = missing.split("'")[1]
    assert f"i.e. '{place / path}" in message


@pytest.mark.parametrize(
    "dataset",
    [
        dict(data_root="data", data_prefix=dict(img="train/"), ann_file="train.json"),
        dict(data_root="data", data_prefix="train"),
        dict(type="mmpretrain.ImageNet", data_root="data", split="train"),
        dict(type="ImageNet", data_root="data"),
        dict(data_root="s3://bucket/absent", ann_file="absent.json"),
        dict(data_root="data", ann_file="http://host/absent.json"),
        dict(data_root="absent", backend_args=dict(backend="petrel")),
        dict(data_root="absent", pipeline=[dict(file_client_args=dict(backend="petrel"))]),
        dict(type="CIFAR10", data_root="absent", split="train"),
        dict(type="OtherDataset", lines=3, split="train", data_root=None),
    ],
)
def test_what_is_there_or_may_be_elsewhere_passes(place, dataset):
    require_data(config(**dataset), "train_dataloader", "val_dataloader")


def test_annotations_of_the_evaluation(place):
    dataset = dict(data_root="data")
    for evaluator, option in (
        (dict(type="CocoMetric", ann_file="data/val.json"), "train_evaluator.ann_file=FILE"),
        ([dict(), dict(ann_file="data/val.json")], "train_evaluator.1.ann_file=FILE"),
    ):
        with pytest.raises(SystemExit, match=option) as stop:
            require_data(config(evaluator, **dataset), "train_dataloader")
        assert "annotation file 'data/val.json' (train_evaluator of" in stop.value.code
    require_data(config(dict(ann_file="data/train.json"), **dataset), "train_dataloader")
