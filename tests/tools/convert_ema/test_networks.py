"""From files of every project to weights that the libraries load, and back."""

import logging
import pickle
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, find_latest_checkpoint, load_checkpoint
from safetensors.torch import load_file

import mmvssm  # noqa: F401  makes 'mmvssm::' bases known
from conversion import GOLDEN, ROOT, assert_equal, product_of, read_case, weights_in
from mmvssm.checkpoint import KeyMap
from verifier import make_input

#: A released form of every family: its project's layout of weights, and the golden case's arch.
RELEASES = {
    "vmamba/vmambav0_tiny_64x96": ("model", "", "VMamba 'v0-tiny'"),
    "vmamba/vmambav0_tiny_renamed_64x96": ("model_ema", "", "VMamba 'v0-tiny'"),
    "vmamba/vmambav2_tiny_s1l8_64x96": ("model_ema", "", "VMamba 'tiny-s1l8'"),
    "efficient_vmamba/tiny_64x96": ("state_dict", "module.module.", "EfficientVMamba 'tiny'"),
    "msvmamba/nano_64x96": ("model_ema", "", "MSVMamba 'nano'"),
    "msvmamba/v3_tiny_64x96": ("model_ema", "module.", "MSVMamba 'v3-tiny'"),
    "local_mamba/local_vssm_tiny__64x96__vfix": (
        "ema_model",
        "module.module.",
        "LocalVMamba 'tiny'",
    ),
    "local_mamba/local_vim_tiny__64x96__vfix": ("state_dict", "", "LocalVim 'tiny'"),
    "mambavision/tiny_224x224": ("state_dict", "", "MambaVision 'tiny'"),
    "vim/vim_tiny_rope_nocls__96x96": ("model", "", "Vim"),
}


@pytest.mark.parametrize("case", RELEASES)
def test_released_classifier(run, tmp_path, case):
    """The converted file, read by mmpretrain, gives the logits of the reference."""
    meta, weights = read_case(case)
    entry, prefix, words = RELEASES[case]
    released = {prefix + key: value for key, value in weights.items()}
    options = Namespace(lr=1e-3)  # research code pickles its options
    torch.save({entry: released, "config": options, "epoch": 3}, "released.pth")
    status, output, _ = run("released.pth", "converted.pth", "--verify")
    assert status == 0
    kind = "EMA weights" if "ema" in entry or prefix == "module.module." else "weights as trained"
    assert f"took     {kind} from '{entry}'" in output
    found = re.search(r"found    mmvssm\.(\w+), arch=(.*): a classifier", output)
    assert " ".join(found.groups()).startswith(words)

    product = product_of(output)
    own = torch.load(product, weights_only=True)["meta"]["mmvssm"]
    backbone = dict(type=own["type"], arch=own["arch"], **own["options"])
    pools = backbone["type"] not in ("mmvssm.Vim", "mmvssm.LocalVim")
    (head,) = (value for key, value in weights.items() if key.endswith("head.weight"))
    head = dict(type="LinearClsHead", num_classes=len(head), in_channels=head.shape[1])
    neck = dict(type="GlobalAveragePooling") if pools else None
    init_default_scope("mmpretrain")
    model = MODELS.build(dict(type="ImageClassifier", backbone=backbone, neck=neck, head=head))
    load_checkpoint(model.eval(), product, strict=True)
    image = torch.from_numpy(make_input(meta["input_shape"], meta["input_key"]))
    with torch.no_grad():
        logits = model(image).flatten()
    golden = np.load(GOLDEN / f"{case}.npz")["logits"]
    np.testing.assert_allclose(logits, golden, rtol=0, atol=1e-4 * np.abs(golden).max())


@pytest.mark.parametrize(
    ("name", "published", "licence"),
    [("vmamba", "ema", ""), ("mambavision", "online", "non-commercial use only (CC-BY-NC-SA 4.0)")],
)
def test_files_of_authors(made, name, published, licence):
    """Files of the authors give their published weights and print the licence; ours do not."""
    config = ROOT / "configs" / "demo" / f"{name}-micro_digits-cls.py"
    backbone = MODELS.build(Config.fromfile(config).model.backbone)
    ours = backbone.state_dict(prefix="backbone.")
    ours |= {"head.fc.weight": torch.randn(10, 256), "head.fc.bias": torch.randn(10)}
    theirs = KeyMap(name).to_original(ours)
    average = {key: value / 2 for key, value in theirs.items() if value.is_floating_point()}
    released = dict(state_dict=theirs, state_dict_ema={**theirs, **average}, epoch=3)
    torch.save(released, "released.pth.tar")
    for weights, kind in (("auto", published), ("ema", "ema"), ("online", "online")):
        options = ("--arch", config, "--weights", weights)
        product, output = made("released.pth.tar", f"{weights}/", *options)
        assert re.fullmatch(rf"{weights}/released-\w{{8}}\.pth", product)
        factor = dict(ema=2, online=1)[kind]
        torch.testing.assert_close(
            factor * weights_in(product)["head.fc.bias"], ours["head.fc.bias"]
        )
        assert ("licence  " in output) == bool(licence) and licence in output
    torch.save(dict(state_dict=ours), "trained.pth")
    assert "licence" not in made("trained.pth", "out/", "--arch", config)[1]


def test_there_and_back_again(made, released, classifier):
    (weights,) = released.values()
    assert list(released) == ["model"] and len(weights) == len(classifier)
    assert torch.equal(
        weights["layers.2.blocks.0.op.in_proj.weight"],
        classifier["backbone.stages.2.blocks.0.mixer.in_proj.weight"],
    )
    assert_equal(weights_in(made("released.pth", "again.pth")[0]), classifier)


@pytest.fixture
def load_messages():
    """Return what MMEngine logs about missing and unexpected keys."""
    texts, handler = [], logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lambda: [text for text in texts if "do not match exactly" in text]
    logger.removeHandler(handler)


LIBRARIES = {"cls": "classifier", "det": "detector", "seg": "segmentor"}


def read_config(name):
    config = Config.fromfile(ROOT / "tests/tools/configs" / f"{name}.py")
    init_default_scope(config.default_scope)
    return config


@pytest.mark.parametrize(("name", "content"), LIBRARIES.items())
def test_start_of_a_training(made, released, classifier, load_messages, name, content):
    """A released classifier, converted for each task, has every key that init_cfg loads."""
    product, _ = made("released.pth", ".", "--to", content)
    config = read_config(name)
    config.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=product, prefix="backbone.")
    model = MODELS.build(config.model)
    model.init_weights()
    assert load_messages() == []
    loaded = model.backbone.state_dict(prefix="backbone.")
    for key, value in loaded.items():
        if re.search(r"backbone\.norm\d", key) and content != "classifier":
            assert (value == float(key.endswith("weight"))).all()
        else:
            assert torch.equal(value, classifier[key])
    # the layers alone leave the norms of outputs to the model, which MMEngine reports
    product, _ = made("released.pth", "layers.pth", "--to", "backbone")
    config.model.backbone.init_cfg.checkpoint = product
    MODELS.build(config.model).init_weights()
    (message,) = load_messages()
    assert re.findall(r"\w+\.(?:weight|bias)", message) == [
        key.removeprefix("backbone.") for key in loaded if ".norm" in key[:14]
    ]
    assert "unexpected" not in message


@pytest.mark.parametrize("name", ["det", "seg"])
def test_whole_models_of_the_authors(made, name):
    """Their heads have the libraries' names; the converted file has every key for load_from."""
    ours = MODELS.build(read_config(name).model).state_dict()
    meta = dict(epoch=12, cfg=read_config(name).pretty_text)
    torch.save(dict(state_dict=ours, meta=meta), "ours.pth")
    theirs = weights_in(made("ours.pth", "theirs.pth", "--reverse")[0])
    assert theirs.keys() & ours.keys() == {key for key in ours if not key.startswith("backbone.")}
    torch.save(dict(state_dict=theirs, meta=meta), "theirs.pth")
    product, output = made("theirs.pth", "converted.pth", "--verify")
    assert f": a {LIBRARIES[name]}" in output
    other = MODELS.build(read_config(name).model)
    load_checkpoint(other, product, strict=True)
    assert_equal(other.state_dict(), ours)
    assert_equal(weights_in(made(product, "back.pth", "--reverse")[0]), theirs)


EMA_HOOKS = {
    "cls": dict(type="mmpretrain.EMAHook", momentum=0.2),
    "det": dict(type="mmengine.EMAHook", ema_type="mmdet.ExpMomentumEMA", momentum=0.2),
    "seg": dict(type="mmengine.EMAHook", momentum=0.2, update_buffers=True),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_averages_of_a_training(made, place, tmp_path, monkeypatch, name):
    """Averaged weights and weights as trained are those of the runner at the end."""
    config = read_config(name)
    config.merge_from_dict(dict(work_dir=str(tmp_path / "work"), default_hooks=dict(logger=None)))
    config.custom_hooks = [EMA_HOOKS[name]]
    parts = ("dataloader", "evaluator", "cfg")
    config.merge_from_dict({f"{loop}_{part}": None for loop in ("val", "test") for part in parts})
    config.train_dataloader.update(num_workers=0, persistent_workers=False)
    length = "max_epochs" if "max_epochs" in config.train_cfg else "max_iters"
    config.train_cfg[length] = dict(max_epochs=1, max_iters=2)[length]
    for head in ("decode_head", "auxiliary_head"):
        if head in config.model:
            config.model[head].norm_cfg = dict(type="BN")
    monkeypatch.chdir(place)
    runner = Runner.from_cfg(config)
    runner.train()
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    trained, averaged = runner.model.state_dict(), hook.ema_model.module.state_dict()
    assert any((trained[key] != averaged[key]).any() for key in trained)
    monkeypatch.chdir(tmp_path)
    path = find_latest_checkpoint("work")
    for kind, expected in (("ema", averaged), ("online", trained), ("auto", averaged)):
        product, output = made(path, f"{kind}.pth", "--weights", kind)
        assert ("EMA weights" if kind != "online" else "as trained") in output.splitlines()[1]
        model = MODELS.build(config.model)
        load_checkpoint(model, product, strict=True)
        assert_equal(model.state_dict(), expected)
    # a plain test of the runner's own file, which is not a safe one, evaluates the average
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    model = MODELS.build(config.model)
    load_checkpoint(model, path)
    assert_equal(model.state_dict(), averaged)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_other_dtypes(made, released, dtype):
    product, _ = made("released.pth", "half.safetensors", "--dtype", dtype)
    weights = load_file(product)
    expected = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert {value.dtype for value in weights.values()} == {expected}
    # and back, from the other format
    product, output = made(product, "full.pth", "--dtype", "fp32", "--verify")
    assert "logits (1, 3)" in output
    again = torch.load(product, weights_only=True)
    assert again["meta"]["mmvssm"]["names"] == "current"  # from the file that was converted first
    assert_equal(again["state_dict"], {key: value.float() for key, value in weights.items()})


def test_what_models_here_have_no_use_for_is_named(made):
    """Segmentors of Vim's authors have a norm that their outputs do not use."""
    _, weights = read_case("vim/vim_tiny_seg__96x96")
    segmentor = {f"backbone.{key}": value for key, value in weights.items()}
    segmentor["decode_head.conv_seg.weight"] = torch.ones(3, 4, 1, 1)
    torch.save(dict(state_dict=segmentor), "seg.pth")
    _, output = made("seg.pth", "a.pth")
    assert "left out, because the output does not use them: backbone.norm_f.weight\n" in output
    # a backbone is converted without the pyramid that its authors have inside it
    torch.save(weights, "backbone.pth")
    _, output = made("backbone.pth", "b.pth")
    left_out = output.partition("left out, because the output does not use them: ")[2]
    assert "fpn1.0.weight" in left_out.splitlines()[0]
    # keys that this content cannot have are not listed
    _, output = made("seg.pth", "c.pth", "--to", "backbone")
    assert "made     a backbone from it" in output and "left out" not in output


def test_a_detector_of_detectron2(made):
    """A file as in its model zoo: numpy arrays, with heads too small to run but with all names."""
    _, weights = read_case("vim/vim_tiny_det__96x96")
    released = {f"backbone.{key}": value for key, value in weights.items()}
    heads = [f"proposal_generator.rpn_head.conv.conv{i}.weight" for i in range(2)]
    heads += [f"roi_heads.box_head.{i}.conv{k}.norm.bias" for i in range(3) for k in range(1, 5)]
    heads += [f"roi_heads.box_predictor.{i}.bbox_pred.weight" for i in range(3)]
    heads += ["roi_heads.mask_head.mask_fcn4.weight", "roi_heads.mask_head.deconv.bias"]
    released |= {key: torch.rand(2) for key in heads}
    arrays = {key: value.numpy() for key, value in released.items()}
    content = dict(model=dict(arrays, pixel_mean=np.ones((3, 1, 1))), __author__="the authors")
    Path("model_final.pkl").write_bytes(pickle.dumps(content, protocol=2))
    product, output = made("model_final.pkl", "a.pth", "--to", "detector", "--arch", "tiny")
    assert "img_size=96, out_norm=False: a detector" in output
    assert "because the output does not use them: pixel_mean\n" in output
    found = weights_in(product)
    assert torch.equal(found["rpn_head.rpn_conv.1.conv.weight"], released[heads[1]])
    assert torch.equal(found["roi_head.mask_head.convs.3.conv.weight"], released[heads[-2]])
    # the line of docs/checkpoints.md turns the config's backbone and neck into these
    text = (ROOT / "docs" / "checkpoints.md").read_text().replace("\\\n", " ")
    path, words = re.search(r"test\.py (\S+)\s+\S+\s+(--cfg-options model.*rope.*)", text).groups()
    parser = ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    config = Config.fromfile(ROOT / path)
    config.merge_from_dict(parser.parse_args(words.split()).cfg_options)
    assert config.model.backbone.img_size == 1024
    config.model.backbone.img_size = 96
    init_default_scope("mmdet")
    for part in ("backbone", "neck"):
        start = f"{part}."
        own = {k.removeprefix(start): v for k, v in found.items() if k.startswith(start)}
        MODELS.build(config.model[part]).load_state_dict(own, strict=True)
    back, _ = made(product, "b.pth", "--reverse")
    restored = torch.load(back, weights_only=True)
    assert restored.keys() == {"model", "state_dict"}
    assert_equal(restored["model"], released)
