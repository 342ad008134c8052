"""A recipe adapted to a user's data: what its datasets return, and its model's classes."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmvssm.engine import set_epochs
from mmvssm.engine.finetune import Layout, OwnData, Split, fit_to_data, read_data

ROOT = Path(__file__).resolve().parents[3]
FAMILIES = sorted(path.parent.name for path in (ROOT / "configs").glob("*/metafile.yml"))
# of each family, one recipe of a kind
KINDS = {
    "mmpretrain": "*_in1k.py",
    "mmdet": "mask-rcnn*_coco.py",
    "mmseg": "*_ade20k-512x512.py",
}
OTHERS = [
    ("mmdet", "vim/cascade-mask-rcnn_vim-tiny_fpn_lsj-184k_coco.py"),
    ("mmdet", "local_vim/mask-rcnn_local-vim-tiny_fpn_lsj-184k_coco.py"),
    ("mmdet", "vmamba/mask-rcnn_vmamba-tiny-s1l8_fpn_ms-3x_coco.py"),
    ("mmpretrain", "local_vmamba/local-vmamba-tiny-search_8xb128_in1k.py"),
    ("mmpretrain", "vim/vim-tiny-stride8_8xb128_in1k.py"),
]
RECIPES = [
    (library, path.relative_to(ROOT / "configs").as_posix())
    for family in FAMILIES
    for library, pattern in KINDS.items()
    for path in sorted((ROOT / "configs" / family).glob(pattern))[:1]
]


def counts(node):
    """Return all numbers of classes in a model, except that of proposals."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "num_classes":
                yield value
            elif name != "rpn_head":
                yield from counts(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from counts(value)


def built(cfg, split):
    init_default_scope(cfg.default_scope)
    registry = import_module(f"{cfg.default_scope}.registry").DATASETS
    return registry.build(cfg[f"{split}_dataloader"].dataset)


@pytest.fixture
def fit(recipe, tmp_path):
    """Adapts the recipe of a library to a folder."""

    def run(library, folder, **layout):
        data = read_data(library, folder, tmp_path / "lists", Layout(**layout))
        return fit_to_data(recipe(library), data)

    return run


@pytest.mark.parametrize(("library", "name"), RECIPES + OTHERS)
def test_every_kind_of_recipe(library, name):
    cfg = Config.fromfile(ROOT / "configs" / name)
    before = cfg.to_dict()
    split = Split("images", "list.txt", 100, "maps", (".jpg", ".png"))
    data = OwnData(tuple("abcdefg"), split, split, masks=True)
    fitted = set_epochs(fit_to_data(cfg, data), 5, images=100)
    assert set(counts(fitted.model)) == {7}
    if library == "mmpretrain":
        assert fitted.data_preprocessor.num_classes == 7
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        dataset = fitted[loader].dataset
        assert dataset.ann_file == "list.txt" and dataset.metainfo.classes == tuple("abcdefg")
        assert len(dataset.pipeline) == len(_leaf(cfg[loader].dataset).pipeline)
    assert (fitted.train_cfg.max_epochs, fitted.train_cfg.type) == (5, "EpochBasedTrainLoop")
    assert cfg.to_dict() == before


def _leaf(dataset):
    return _leaf(dataset.dataset) if "dataset" in dataset else dataset


def test_photos(fit, photos):
    cfg = fit("mmpretrain", photos)
    train, val = built(cfg, "train"), built(cfg, "val")
    assert [train.get_data_info(index)["gt_label"] for index in range(6)] == [0, 0, 1, 1, 1, 2]
    # the validation folder lacks the first class
    assert [val.get_data_info(index)["gt_label"] for index in range(2)] == [1, 2]
    assert train[0]["inputs"].shape == (3, 224, 224)
    assert train.metainfo["classes"] == ("cat", "dog", "owl")
    # three classes have no top 5
    assert cfg.val_evaluator.topk == cfg.test_evaluator.topk == (1,)


def test_boxes(fit, boxes, change):
    def turn(content):
        content["categories"] = content["categories"][::-1]

    change(turn, "val")
    cfg = fit("mmdet", boxes)
    for split, count in (("train", 5), ("val", 2)):
        dataset = built(cfg, split)
        assert len(dataset) == count
        for index in range(count):
            # cats are left of dogs
            labels = {
                instance["bbox"][0]: instance["bbox_label"]
                for instance in dataset.get_data_info(index)["instances"]
            }
            assert labels == {4: 0, 12: 1}
    assert cfg.val_evaluator.ann_file == cfg.val_dataloader.dataset.ann_file
    assert cfg.val_evaluator.metric == ["bbox", "segm"]
    # proposals know no classes
    assert "num_classes" not in cfg.model.rpn_head


def test_boxes_alone(fit, boxes, make_coco):
    for split, count in (("train", 5), ("val", 2)):
        path = boxes / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(make_coco(count, masks=False)))
    cfg = fit("mmdet", boxes)
    assert cfg.model.roi_head.mask_head is None and cfg.model.roi_head.mask_roi_extractor is None
    sample = built(cfg, "train")[0]["data_samples"]
    assert len(sample.gt_instances.bboxes) == 2 and "masks" not in sample.gt_instances
    assert cfg.val_evaluator.metric == ["bbox"]


@pytest.mark.parametrize("reduce", [False, True])
def test_maps(fit, maps, reduce):
    cfg = fit("mmseg", maps, reduce_zero_label=reduce)
    dataset = built(cfg, "val")
    labels = dataset[0]["data_samples"].gt_sem_seg.data[0]
    # bands of 0, 1, 2 and 255, eight rows each
    assert labels[4::8, 0].tolist() == ([255, 0, 1, 255] if reduce else [0, 1, 2, 255])
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 3 - reduce
    assert len(built(cfg, "train")) == 5
    assert len(dataset.metainfo["palette"]) == 3 - reduce


def test_held_out_maps_are_not_trained_on(fit, maps):
    for kind in ("images", "annotations"):
        shutil.rmtree(maps / kind / "validation")
    cfg = fit("mmseg", maps)
    train, val = (
        {info["img_path"] for info in map(built(cfg, split).get_data_info, range(count))}
        for split, count in (("train", 4), ("val", 1))
    )
    assert len(train | val) == 5


def test_repetition_falls_away_and_mixing_stays(recipe):
    cfg = recipe("mmdet")
    leaf = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(
        type="MultiImageMixDataset",
        pipeline=[],
        dataset=dict(
            type="RepeatDataset", times=3, dataset=dict(type="ConcatDataset", datasets=[leaf])
        ),
    )
    split = Split("images", "list.json", 4)
    dataset = fit_to_data(cfg, OwnData(("a", "b"), split, split)).train_dataloader.dataset
    assert dataset.type == "MultiImageMixDataset" and dataset.dataset.type == "mmdet.CocoDataset"


def test_weights_of_classes_must_be_as_many(recipe):
    cfg = recipe("mmseg")
    cfg.model.decode_head.loss_decode.class_weight = [1.0] * 150
    split = Split("images", "list.txt", 4, "maps", (".jpg", ".png"))
    with pytest.raises(
        ValueError, match=r"loss_decode\.class_weight has 150 weights, .* 2 classes"
    ):
        fit_to_data(cfg, OwnData(("a", "b"), split, split))


def test_model_without_classes(recipe):
    cfg = recipe("mmpretrain")
    cfg.model.head = dict(type="SomeHead")
    split = Split("images", "list.txt", 4)
    with pytest.raises(ValueError, match="no num_classes"):
        fit_to_data(cfg, OwnData(("a", "b"), split, split))
