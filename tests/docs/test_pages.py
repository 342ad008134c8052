"""README and the pages are right: snippets run, and the commands and files exist."""

import contextlib
import functools
import importlib
import io
import re
import runpy
import shutil
import sys
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope

import mmvssm
from abilities import WHOLE_GRAPHS
from mmvssm.families import FAMILIES, arch_names
from mmvssm.families.key_map import KeyMap
from mmvssm.hub import Address
from mmvssm.models import VMamba
from mmvssm.registry import MODELS
from pages import PAGES, blocks, commands

ROOT = Path(__file__).resolve().parents[2]
#: Strings that mark snippets run by other tests.
ELSEWHERE = {
    'Inferencer("config.py"': "tests/tools/test_predict.py runs it with configs of all libraries",
    "onnxruntime": "tests/tools/test_export.py runs exported models",
    "aoti_load_package": "tests/tools/test_export.py runs compiled packages",
}
#: Code that pages show completely or in part; tests/packaging trains with it.
OUTSIDE = [
    file.read_text()
    for folder in ("outside_project", "outside_kernel")
    for file in (ROOT / "tests" / folder).glob("*.py")
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A reader's folder: a photo, and weights as their authors release them."""
    folder = tmp_path_factory.mktemp("reader")
    cv2.imwrite(str(folder / "photo.jpg"), np.random.randint(0, 255, (300, 200, 3), np.uint8))
    family, _ = arch_names()["vmamba-tiny-s1l8"]
    weights = mmvssm.get_model("vmamba-tiny-s1l8_8xb128_in1k").state_dict()
    original = KeyMap(family, "classification").to_original(weights)
    released = folder / "home" / "released"
    released.mkdir(parents=True)
    file = released / "vmamba-tiny-s1l8.pth"
    torch.save(dict(model=original, model_ema=original), file)
    (folder / "vssm1_tiny_0230s_ckpt_epoch_264.pth").hardlink_to(file)
    return folder


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Makes a file of an exported model, once."""
    backbone = VMamba(dict(embed_dims=8, depths=(1, 1, 1, 1)), out_indices=(3,)).eval()
    image = torch.rand(1, 3, 64, 64)
    folder = tmp_path_factory.mktemp("programs")

    @functools.cache
    def program(name):
        if name == "model.pt2":
            torch.export.save(torch.export.export(backbone, (image,)), folder / name)
        else:
            with torch.no_grad():
                torch.jit.trace(backbone, image).save(folder / name)
        return folder / name

    return program


@pytest.mark.parametrize("block", list(blocks("python")))
def test_snippet(block, reader, programs, monkeypatch):
    if any(block in text for text in OUTSIDE):
        return
    for sign, reason in ELSEWHERE.items():
        if sign in block:
            pytest.skip(reason)
    # as in a fresh process; nothing that a snippet registers stays
    monkeypatch.setattr(DefaultScope, "_instance_dict", OrderedDict())
    monkeypatch.setattr(MODELS, "_module_dict", dict(MODELS._module_dict))
    monkeypatch.chdir(reader)
    monkeypatch.setenv("MMVSSM_HOME", str(reader / "home"))
    if "torch.export" in block and not WHOLE_GRAPHS:
        pytest.skip("this torch exports no scans")
    for name in re.findall(r"model\.pt2?\b", block):
        shutil.copy(programs(name), name)
    if "_base_" in block:
        Path("example.py").write_text(block)
        cfg = Config.fromfile("example.py")
        init_default_scope(cfg.default_scope)
        registry = importlib.import_module(f"{cfg.default_scope}.registry")
        model = registry.MODELS.build(cfg.model)
        assert type(model.backbone).__module__.startswith("mmvssm.models.backbones")
        assert "train_cfg" in cfg and "train_dataloader" in cfg
    else:
        exec(block, {"image": torch.rand(1, 3, 64, 64)})


@functools.cache
def options_of(tool):
    """Return all options of a tool, as its --help shows them."""
    if tool.endswith(".sh"):
        return options_of(f"tools/{tool.rpartition('_')[2].removesuffix('.sh')}.py")
    text, argv = io.StringIO(), sys.argv
    sys.argv = [tool, "--help"]
    try:
        with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / tool), run_name="__main__")
    finally:
        sys.argv = argv
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text.getvalue()))


@pytest.mark.parametrize("words", list(commands()))
def test_command_names_what_exists(words, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    while "=" in words[0]:
        words = words[1:]  # environment
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        for target in (word for word in words[1:] if "=" not in word):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for word in words:
        name = word.partition("=")[0]
        if re.match(r"(configs|requirements|tools|benchmarks|projects|tests)/", name):
            assert (ROOT / name).exists() or name.startswith("benchmarks/results"), name
        if word.startswith("mmvssm://"):
            Address.parse(word)
    tools = [word for word in words if re.fullmatch(r"(tools|benchmarks)/\S+\.(py|sh)", word)]
    for tool in tools:
        given = {word for word in words[words.index(tool) :] if re.match(r"--?[a-z]", word)}
        assert given <= options_of(tool), tool


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    text = re.sub(
        r"```cpp\n.*?```", "", page.read_text(), flags=re.DOTALL
    )  # [&](...) is not a link
    for target in re.findall(r"\]\(([^()\s#]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:benchmarks|configs|requirements|tests|tools)/[\w./-]*\w)`", text):
        assert re.search("FAMILY|NAME", name) or (ROOT / name).exists(), name


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_readme_names_every_family():
    table = re.findall(r"^\| \[`(\w+)`\]\((\S+?)\)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {name: link for name, link in table} == {
        family.type.removeprefix("mmvssm."): f"configs/{family.name}/README.md"
        for family in FAMILIES.values()
    }
