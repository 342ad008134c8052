"""The project Dual-SAM: parity with the reference, names of weights, data, training."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.registry import DATASETS, MODELS, TRANSFORMS
from mmseg.structures import SegDataSample

from forked import run_program
from mmvssm.checkpoint import CheckpointError, read_checkpoint
from projects.dual_sam import connectivity, data, golden, network, weights
from verifier import fill_value, find_cases, verify_file

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden" / "dual_sam"
CONFIGS = ROOT / "projects" / "dual_sam" / "configs"
MICRO_SAM = dict(
    embed_dims=48,
    num_layers=4,
    num_heads=2,
    feedforward_channels=96,
    global_attn_indexes=[0, 1, 2, 3],
)
needs_scores = pytest.mark.skipif(
    data.py_sod_metrics is None, reason="PySODMetrics is not installed"
)


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope("mmseg")


def micro(**options):
    """Build a network on a micro SAM encoder for images of 64x64 pixels."""
    backbone = dict(type="DualViTSAM", arch=MICRO_SAM, img_size=64, train_gates=True)
    model = dict(type="DualSAM", decoder_widths=(16, 32, 64, 128), **options)
    return MODELS.build(dict(model, backbone=backbone))


def cases():
    for path in find_cases([GOLDEN]):
        marks = [pytest.mark.slow] if path.stem == "vit_b_512" else []
        marks += [needs_scores] if path.stem == "metrics" else []
        yield pytest.param(path, id=path.stem, marks=marks)


@pytest.mark.parametrize("path", list(cases()))
def test_parity(path):
    results = list(verify_file(path, "torch"))
    assert results and [r for r in results if r.status != "passed"] == []


def test_all_cases_are_found():
    names = ["connectivity", "gamma", "losses", "metrics"]
    names += ["small_eval_128", "small_train_128", "vit_b_512"]
    assert [path.stem for path in find_cases([GOLDEN])] == names


@pytest.mark.slow
@pytest.mark.parametrize("change", [dict(crossed_skips=False), dict(scrambled_values=False)])
def test_the_other_form_fails(tmp_path, change):
    meta = json.loads((GOLDEN / "small_eval_128.json").read_text())
    meta["build"].update(change)
    (tmp_path / "case.json").write_text(json.dumps(meta))
    (tmp_path / "case.npz").symlink_to(GOLDEN / "small_eval_128.npz")
    (result,) = verify_file(tmp_path / "case.json", "torch")
    assert result.status == "failed" and result.detail.startswith("worst")


# connectivity and losses


def test_consistent_votes_give_the_mask_without_lonely_pixels():
    mask = (torch.rand(1, 15, 18) > 0.8).float()
    target = connectivity.connectivity(mask)
    expected = torch.zeros_like(mask)
    for row, column in mask[0].nonzero().tolist():
        for down, right in connectivity.OFFSETS:
            y, x = row + down, column + right
            if 0 <= y < 15 and 0 <= x < 18 and mask[0, y, x]:
                expected[0, row, column] = 1
    assert 0 < expected.sum() < mask.sum()
    assert torch.equal(connectivity.vote(target, consistent=True)[:, 0], expected)
    assert not torch.equal(connectivity.vote(target)[:, 0], expected)


def pyramid(channels=8, size=16):
    return [torch.randn(2, channels, size >> j, size >> j) for j in range(4)]


def test_pseudo_labels_grow_with_the_schedule():
    hub = MessageHub.get_current_instance()
    mask, logits = torch.zeros(2, 16, 16).long(), (pyramid(), pyramid())
    plain = connectivity.connectivity_losses(*logits, mask.float())
    for kind, done, total, weight in (
        ("epoch", 0, 25, 6.737947e-4),
        ("epoch", 24, 25, 0.09920319),
        ("iter", 50, 100, 0.1 * np.exp(-1.25)),
    ):
        hub.update_info(kind, done)
        hub.update_info(f"max_{kind}s", total)
        losses = connectivity.MutualConnectivityLoss(progress=kind)(*logits, mask)
        assert losses.keys() == plain.keys() and len(losses) == 16
        for name, value in losses.items():
            factor = weight if "pseudo" in name else 1
            assert value.item() == pytest.approx(factor * plain[name].item(), rel=1e-5)


def test_losses_without_a_runner_say_what_is_missing(monkeypatch):
    monkeypatch.setattr(MessageHub, "get_current_instance", lambda: MessageHub("empty"))
    loss = connectivity.MutualConnectivityLoss()
    with pytest.raises(RuntimeError, match="has not set 'max_epochs'"):
        loss(pyramid(), pyramid(), torch.zeros(2, 16, 16).long())


def test_losses_under_autocast_are_float32():
    with torch.autocast("cpu", torch.bfloat16):
        losses = connectivity.connectivity_losses(pyramid(), pyramid(), torch.ones(2, 16, 16))
    assert {value.dtype for value in losses.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.full((2, 16, 16), 255), r"values of masks must be 0 to 1, got 255 to 255"),
        (torch.zeros(2, 12, 16).long(), r"size of the images, \(16, 16\), got \(12, 16\)"),
    ],
)
def test_wrong_masks_are_refused(mask, reason):
    with pytest.raises(ValueError, match=reason):
        connectivity.MutualConnectivityLoss()(pyramid(), pyramid(), mask)


def test_wrong_images_are_refused():
    model = micro()
    with pytest.raises(ValueError, match=r"must have img_size, 64x64 pixels.*got 64x96"):
        model(torch.randn(1, 6, 64, 96))
    with pytest.raises(ValueError, match="6 channels, an image and its gamma-corrected copy"):
        model(torch.randn(1, 3, 64, 64))
    arch = dict(MICRO_SAM, global_attn_indexes=[1, 3])
    with pytest.raises(ValueError, match=r"arch must have 4 global_attn_indexes, got \[1, 3\]"):
        network.DualViTSAM(arch, img_size=64)
    with pytest.raises(ValueError, match=r"arch must be one of b, base, .*, got 'tiny'"):
        network.DualViTSAM("tiny")
    with pytest.raises(ValueError, match=r"multiple of 24 \(heads\), got 1024"):
        network.DualViTSAM("large")
    with pytest.raises(ValueError, match=r"multiple of 24 \(heads\), got 64"):
        network.DualViTSAM(dict(MICRO_SAM, embed_dims=64), img_size=64)
    backbone = dict(type="mmvssm.VMamba", arch=dict(embed_dims=8, depths=(1, 1, 1, 1)))
    encoder = network.DualPyramid(backbone, in_channels=[8, 16, 32, 64], neck_channels=16)
    with pytest.raises(ValueError, match="multiples of 32, got 64x80"):
        encoder(*torch.randn(2, 1, 3, 64, 80))


# names of weights


def full_network():
    with torch.device("meta"):
        return MODELS.build(dict(type="DualSAM", backbone=dict(type="DualViTSAM")))


def test_names_of_the_whole_model_both_ways():
    given = json.loads((GOLDEN / "keys" / "dual_sam_vit_b.json").read_text())
    unused = tuple(given["unused_prefixes"])
    theirs = {key: tuple(shape) for key, shape, _ in given["state_dict"]}
    ours = {key: tuple(value.shape) for key, value in full_network().state_dict().items()}
    gates = {"backbone.prompts.image_gates", "backbone.prompts.gamma_gates"}
    named = {weights.key_to_ours(key): shape for key, shape in theirs.items()}
    assert named.pop(None)
    assert named == {key: shape for key, shape in ours.items() if key not in gates}
    back = {weights.key_to_original(key): shape for key, shape in ours.items()}
    assert back.pop(None) == (4,)
    assert back == {key: shape for key, shape in theirs.items() if not key.startswith(unused)}


def test_parameters_are_as_many_as_published():
    model = full_network()
    given = json.loads((GOLDEN / "keys" / "dual_sam_vit_b.json").read_text())
    parts = given["params_by_part"]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == given["num_trainable"]
    assert sum(p.numel() for p in model.parameters()) == given["num_params"] - parts["unused"] + 8
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_children()}
    assert sizes["decoders"] == parts["decoders"]


def sam_file(path, prefix, rename=lambda key: key):
    """A file of SAM's micro encoder for images twice as large; returns its tensors."""
    encoder = network.ViTSAM(dict(MICRO_SAM), img_size=128, out_channels=256)
    mine = {f"backbone.{key}": value for key, value in encoder.state_dict().items()}
    tensors = {
        rename(key): torch.from_numpy(fill_value(key, value.shape)) for key, value in mine.items()
    }
    torch.save({prefix + key: value for key, value in tensors.items()}, path)
    return {key.removeprefix("backbone."): tensors[rename(key)] for key in mine}


def as_sam(key):
    return weights.key_to_original(key).removeprefix("sam.").replace("qkv.qkv", "qkv")


@pytest.mark.parametrize(
    "rename",
    [as_sam, lambda key: key, lambda key: key.removeprefix("backbone.")],
    ids=["sam", "mmpretrain", "backbone alone"],
)
def test_sam_encoder_loads_and_its_tables_fit(tmp_path, rename):
    tensors = sam_file(tmp_path / "sam.pth", "", rename)
    model = network.DualViTSAM(
        MICRO_SAM, img_size=64, pretrained=str(tmp_path / "sam.pth"), lora_rank=2
    )
    adapters = {k: v.clone() for k, v in model.state_dict().items() if ".adapters." in k}
    model.init_weights()
    loaded = model.state_dict()
    for key, value in tensors.items():
        if key == "pos_embed":
            value = F.interpolate(value.permute(0, 3, 1, 2), (4, 4), mode="bilinear")
            value = value.permute(0, 2, 3, 1)
        elif "rel_pos" in key:
            value = F.interpolate(value.T[None], 7, mode="linear")[0].T
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=1e-6)
    assert all(torch.equal(loaded[key], value) for key, value in adapters.items())


def test_bad_files_of_sam_are_refused(tmp_path):
    model = network.DualViTSAM(MICRO_SAM, img_size=64)
    with pytest.raises(FileNotFoundError, match="download SAM ViT-B"):
        weights.load_encoder(model, tmp_path / "none.pth")
    sam_file(tmp_path / "sam.pth", "")
    tensors = torch.load(tmp_path / "sam.pth")
    del tensors["backbone.layers.1.attn.qkv.bias"]
    torch.save(tensors, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"lacks weights.*: layers\.1\.attn\.qkv\.bias"):
        weights.load_encoder(model, tmp_path / "part.pth")


def test_command_converts_there_and_back(tmp_path, monkeypatch, capsys):
    state = micro().state_dict()
    torch.save(dict(state_dict=state), tmp_path / "ours.pth")

    def convert(*arguments):
        monkeypatch.setattr(sys, "argv", ["weights", *map(str, arguments)])
        weights.main()
        return Path(capsys.readouterr().out.split()[1].rstrip(","))

    original = convert(tmp_path / "ours.pth", tmp_path / "theirs.pth", "--to-original")
    names = read_checkpoint(original)["state_dict"]
    assert "sam.image_encoder.blocks.0.attn.qkv.linear_a_q.weight" in names
    assert "desam.pre44.1.pre.weight" in names
    again = read_checkpoint(convert(original, tmp_path / "again.pth"))["state_dict"]
    lost = {"backbone.prompts.image_gates", "backbone.prompts.gamma_gates"}
    assert state.keys() - again.keys() == lost
    assert all(torch.equal(again[key], state[key]) for key in again)
    with pytest.raises(SystemExit, match=r"has no key that starts with 'desam\.'"):
        convert(tmp_path / "ours.pth", tmp_path / "x.pth")


# data


@pytest.fixture
def animals(tmp_path):
    """Six images with one bright disc each, in the layout of the data sets."""
    rng = np.random.default_rng(0)
    for folder in ("Image", "Masks"):
        (tmp_path / folder).mkdir()
    for number in range(6):
        mask = np.zeros((48, 72), np.uint8)
        cv2.circle(mask, (20 + 6 * number, 24), 12, 255, -1)
        image = rng.integers(10, 60, (48, 72, 3), dtype=np.uint8) + mask[..., None] // 2
        cv2.imwrite(str(tmp_path / "Image" / f"{number}.jpg"), image)
        cv2.imwrite(str(tmp_path / "Masks" / f"{number}.png"), mask)
    return tmp_path


def test_dataset_lists_masks_with_their_images(animals):
    (animals / "Image" / "background.jpg").write_bytes(b"")
    items = DATASETS.build(dict(type="MarineAnimalDataset", data_root=str(animals)))
    assert len(items) == 6
    assert items.get_data_info(2)["img_path"] == str(animals / "Image" / "2.jpg")
    assert items.get_data_info(2)["seg_map_path"] == str(animals / "Masks" / "2.png")
    (animals / "Image" / "4.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"4\.png' has no image '.*4\.jpg'"):
        DATASETS.build(dict(type="MarineAnimalDataset", data_root=str(animals)))
    for name, reason in (("none", "there is no folder"), ("empty", r"there is no mask \*\.png")):
        if name == "empty":
            (animals / name / "Image").mkdir(parents=True)
            (animals / name / "Masks").mkdir()
        with pytest.raises(FileNotFoundError, match=reason):
            DATASETS.build(dict(type="MarineAnimalDataset", data_root=str(animals / name)))


def test_pipeline_normalises_and_resizes_as_published(animals):
    """The published order, normalise then resize, gives the same up to rounding."""
    cfg = Config.fromfile(CONFIGS / "dual-sam_vit-b_code_mas3k.py")
    options = dict(cfg.train_dataloader.dataset, data_root=str(animals))
    sample = DATASETS.build(options)[0]
    got = MODELS.build(cfg.model.data_preprocessor)(
        dict(inputs=[sample["inputs"]], data_samples=[sample["data_samples"]]), training=True
    )
    image = cv2.imread(str(animals / "Image" / "0.jpg"))
    mean, std = np.float32([124.55, 118.90, 102.94]), np.float32([56.77, 55.97, 57.50])
    for part, bgr in zip(got["inputs"][0].chunk(2), (image, data.gamma_correct(image))):
        normal = (bgr[..., ::-1].astype(np.float32) - mean) / std
        expected = torch.from_numpy(cv2.resize(normal, (512, 512))).permute(2, 0, 1)
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-5)
    mask = cv2.imread(str(animals / "Masks" / "0.png"), cv2.IMREAD_GRAYSCALE)
    mask = cv2.resize(mask, (512, 512), interpolation=cv2.INTER_NEAREST)
    assert torch.equal(got["data_samples"][0].gt_sem_seg.data[0], torch.from_numpy(mask).long())


def test_gamma_image_of_the_data_set_is_taken(animals):
    (animals / "gamma_Image").mkdir()
    for number in range(6):
        cv2.imwrite(str(animals / "gamma_Image" / f"{number}.jpg"), np.full((48, 72, 3), 77))
    folders = dict(img_path="Image", seg_map_path="Masks", gamma_path="gamma_Image")
    pipeline = [dict(type="LoadImageFromFile"), dict(type="AddGammaImage")]
    options = dict(type="MarineAnimalDataset", data_root=str(animals), data_prefix=folders)
    image = DATASETS.build(dict(options, pipeline=pipeline))[0]["img"]
    assert image.shape == (48, 72, 6) and image.dtype == np.float32
    assert (image[..., 3:] == 77).all() and (image[..., :3] != 77).any()
    cv2.imwrite(str(animals / "gamma_Image" / "0.jpg"), np.full((40, 72, 3), 77))
    with pytest.raises(ValueError, match=r"must have the size of its image, \(48, 72\), got"):
        DATASETS.build(dict(options, pipeline=pipeline))[0]


def test_gamma_of_black_and_white_changes_nothing():
    for value in (0, 255):
        image = np.full((4, 5, 3), value, np.uint8)
        assert data.gamma_exponent(image) == 1.0
        assert np.array_equal(data.gamma_correct(image), image)
    dark = np.full((4, 5, 3), 60, np.uint8)
    assert data.gamma_correct(dark).mean() == pytest.approx(127.5, abs=0.5)
    with pytest.raises(ValueError, match="put AddGammaImage right after LoadImageFromFile"):
        data.AddGammaImage().transform(dict(img=dark.astype(np.float32)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(), [0, 0, 0, 1, 1]),
        (dict(minimum=2), [0, 1, 1, 1, 1]),
        (dict(binary=False), [0, 2, 60, 150, 200]),
    ],
)
def test_masks_are_made_binary(tmp_path, options, expected):
    cv2.imwrite(str(tmp_path / "mask.png"), np.uint8([[0, 2, 60, 150, 200]]))
    load = TRANSFORMS.build(dict(type="LoadMask", **options))
    results = load(dict(seg_map_path=str(tmp_path / "mask.png"), seg_fields=[]))
    assert results["gt_seg_map"].tolist() == [expected]
    assert results["seg_fields"] == ["gt_seg_map"]


# scores


def test_predictions_are_rescaled_as_published():
    probability = np.float64([[65.49, 65.5], [0.0, 255.0]]) / 255
    same = data.rescale(probability, (2, 2), threshold=65)
    assert same.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    soft = data.rescale(np.float64([[0.2, 0.6], [0.4, 0.6]]), (2, 2), threshold=None)
    assert soft.tolist() == [[0.0, 1.0], [0.5, 1.0]]
    assert (data.rescale(np.full((2, 2), 0.2), (4, 6), threshold=None) == 51 / 255).all()


@needs_scores
def test_scores_of_perfect_and_blank_predictions():
    mask = np.zeros((32, 32), bool)
    mask[8:20, 10:30] = True
    best = data.score(mask.astype(float), mask)
    assert best == pytest.approx(dict(zip(best, [1, 1, 1, 1, 0])), abs=2e-3)
    blank = np.zeros((32, 32))
    assert data.score(blank, mask)["mIoU"] < 1e-6
    assert data.score(blank, mask, blank_is_full=True)["mIoU"] == pytest.approx(mask.mean())


@needs_scores
def test_metric_averages_over_images_at_the_size_of_their_masks():
    mask = torch.zeros(1, 32, 48).long()
    mask[:, 8:24, 12:36] = 1
    small = mask[None, :, ::2, ::2].float()[0]
    metric = data.AnimalMetric()
    for probability in (0.9 * small, 0.25 * small):  # the second is below the threshold
        sample = dict(gt_sem_seg=dict(data=mask), probability=dict(data=probability))
        metric.process({}, [sample])
    good, blank = (data.score(x, mask[0].numpy().astype(bool)) for x in _rescaled(small, mask))
    assert good["mIoU"] > 0.95 and blank["mIoU"] < 1e-6
    expected = {name: round((good[name] + blank[name]) / 2, 4) for name in good}
    assert metric.evaluate(size=2) == expected


def _rescaled(small, mask):
    maps = (factor * small[0].numpy() for factor in (0.9, 0.25))
    return [data.rescale(x, mask.shape[1:], threshold=65) for x in maps]


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(data, "py_sod_metrics", None)
    with pytest.raises(ImportError, match="pip install -r projects/dual_sam/requirements"):
        data.score(np.zeros((4, 4)), np.zeros((4, 4), bool))
    (result, *_) = verify_file(GOLDEN / "metrics.json", "torch")
    assert result.status == "unsupported" and "PySODMetrics is not installed" in result.detail


def test_metric_refuses_masks_of_other_values():
    sample = dict(gt_sem_seg=dict(data=torch.full((1, 4, 4), 255)))
    with pytest.raises(ValueError, match="masks must hold 0 and 1, got 255 to 255"):
        data.AnimalMetric().process({}, [sample])


# configs and training


def test_each_data_set_has_its_folders():
    recommended = Config.fromfile(CONFIGS / "dual-sam_vit-b_mas3k.py")
    for path in CONFIGS.glob("*.py"):
        cfg, name = Config.fromfile(path), path.stem.rpartition("_")[2].upper()
        assert cfg.custom_imports == dict(imports=["projects.dual_sam"])
        if path.stem.startswith("dual-sam_vit-b"):
            assert cfg.train_dataloader.dataset.data_root == f"data/{name}/train"
            assert cfg.test_dataloader.dataset.data_root == f"data/{name}/test"
        if name in ("RMAS", "UFO120", "RUWI"):
            assert cfg.model == recommended.model


@pytest.mark.parametrize(
    "path",
    [*sorted(CONFIGS.glob("*mas3k.py")), *CONFIGS.glob("*digits.py")],
    ids=lambda path: path.stem,
)
def test_configs_build(path):
    cfg = Config.fromfile(path)
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    is_code = "_code_" in path.stem
    assert (model.crossed_skips, model.consistent_votes) == (is_code, not is_code)
    if isinstance(model.backbone, network.DualViTSAM):
        prompts = model.backbone.prompts
        assert prompts.blocks[0].scrambled_values == is_code
        assert prompts.image_gates.requires_grad != is_code
    side = 128 if path.stem.endswith("digits") else 512
    outputs = model(torch.empty(1, 6, side, side, device="meta"))
    for logits in outputs:
        assert [x.shape for x in logits] == [(1, 8, side >> j, side >> j) for j in range(4)]


def small_training(cfg, animals, work_dir, **model):
    """Change a config to two iterations on images of 64x64 pixels."""
    cfg.merge_from_dict(dict(model=model))
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(batch_size=3, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(animals)
        for step in loader.dataset.pipeline:
            if step["type"] == "Resize":
                step["scale"] = (64, 64)
    cfg.test_dataloader = cfg.val_dataloader
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.val_evaluator = cfg.test_evaluator = dict(type="IoUMetric")
    cfg.default_hooks.logger.interval = 1
    cfg.work_dir = str(work_dir)
    return cfg


@pytest.mark.parametrize("name", ["dual-sam_vit-b_code_mas3k", "dual-sam_vit-b_mas3k"])
def test_trains_what_is_not_frozen(animals, tmp_path, monkeypatch, name):
    # logging machine and config takes longer than the steps
    monkeypatch.setattr(Config, "pretty_text", "not formatted")
    monkeypatch.setattr(Runner, "_log_env", lambda runner, env_cfg: None)
    sam_file(tmp_path / "sam.pth", "")
    backbone = dict(arch=MICRO_SAM, img_size=64, pretrained=str(tmp_path / "sam.pth"))
    cfg = Config.fromfile(CONFIGS / f"{name}.py")
    cfg.model.backbone.update(backbone, gate_init=0.5)
    cfg = small_training(cfg, animals, tmp_path / "out", decoder_widths=[16, 32, 64, 128])
    cfg.param_scheduler = []
    runner = Runner.from_cfg(cfg)
    runner.train()
    trained = runner.model.state_dict()
    start = micro()
    weights.load_encoder(start.backbone, tmp_path / "sam.pth")
    frozen = {
        f"backbone.{key}" for key in weights.encoder_weights(torch.load(tmp_path / "sam.pth"))
    }
    assert all(torch.equal(trained[key], start.state_dict()[key]) for key in frozen)
    ups = [k for k in trained if "lora_" in k and k.endswith(".1.weight")]
    assert len(ups) == 8 and all(trained[key].any() for key in ups)  # they start at zero
    gates = torch.cat([trained[f"backbone.prompts.{x}_gates"] for x in ("image", "gamma")])
    assert bool((gates == 0.5).all()) == ("_code_" in name)


@pytest.mark.parametrize("with_test", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_stock_scripts_run_the_state_space_variant(animals, tmp_path, with_test):
    cfg = Config.fromfile(CONFIGS / "dual-sam_vmamba-micro_digits.py")
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.update(img_suffix=".jpg")
        loader.dataset.data_prefix = dict(img_path="Image", seg_map_path="Masks")
    for path in (*animals.glob("Image/*"), *animals.glob("Masks/*")):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), cv2.resize(image, (64, 64), interpolation=cv2.INTER_NEAREST))
    cfg = small_training(cfg, animals, tmp_path / "out")
    cfg.dump(tmp_path / "mine.py")
    tools = Path(find_spec("mmseg").origin).parent / ".mim" / "tools"
    scripts = [("train.py", "mine.py")]
    if with_test:
        scripts.append(("test.py", "mine.py", "out/epoch_1.pth", "--work-dir", "tested"))
    environment = dict(PYTHONPATH=str(ROOT), TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")
    for script, *arguments in scripts:
        status, output = run_program([tools / script, *arguments], tmp_path, environment)
        assert status == 0, output
    (scalars,) = tmp_path.glob("out/*/vis_data/scalars.json")
    steps = [line for line in map(json.loads, scalars.read_text().splitlines()) if "loss" in line]
    assert [step["step"] for step in steps] == [1, 2]
    assert all(sum("loss_" in key for key in step) == 16 for step in steps)
    validated = [
        line for line in map(json.loads, scalars.read_text().splitlines()) if "mIoU" in line
    ]
    assert len(validated) == 1
    if with_test:
        (result,) = tmp_path.glob("tested/*/*.json")
        assert json.loads(result.read_text())["mIoU"] == validated[0]["mIoU"]


def test_prediction_has_the_size_of_the_original():
    model = micro(consistent_votes=True).eval()
    sample = SegDataSample(metainfo=dict(ori_shape=(40, 90)))
    inputs = torch.randn(1, 6, 64, 64)
    with torch.no_grad():
        (result,) = model.predict(inputs, [sample])
        image_logits, _ = model(inputs)
    probability = connectivity.vote(image_logits[0].sigmoid(), consistent=True)[0]
    assert torch.equal(result.probability.data, probability)
    assert result.seg_logits.data.shape == result.pred_sem_seg.data.shape == (1, 40, 90)
    assert torch.equal(result.pred_sem_seg.data == 1, result.seg_logits.data > 65.5 / 255)


def test_reader_tells_what_it_does_not_build():
    build = json.loads((GOLDEN / "small_eval_128.json").read_text())["build"]
    with pytest.raises(golden.UnsupportedCase, match="window_size 7: only 14 is built"):
        golden.build_network(dict(build, window_size=7))
