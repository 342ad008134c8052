"""The installed files, and how configs of an outside project inherit from them."""

import importlib.util
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# Runs as a stock script would: MMEngine only, mmvssm not imported first.
LOAD = """
import json, sys
from mmengine.config import Config
for path in sys.argv[1:]:
    cfg = Config.fromfile(path)
    print(json.dumps(dict(backbone=cfg.model.backbone, data_root=cfg.data_root)))
"""
FORMS = {
    "config_path": "__import__('mmvssm').config_path('{name}')",
    "list": "[__import__('mmvssm') and 'mmvssm::{name}']",
    "absolute path": "'{folder}/{name}'",
    "relative path": "'{relative}/{name}'",
}
DEMO = "demo/vmamba-micro_digits-cls.py"
# A config of each library and of three families.
INHERITED = {
    DEMO: "mmvssm.VMamba",
    "vmamba/vmamba-tiny-s1l8_8xb128_in1k.py": "mmvssm.VMamba",
    "efficient_vmamba/mask-rcnn_efficient-vmamba-tiny_fpn_1x_coco.py": "mmvssm.EfficientVMamba",
    "vim/vim-tiny_upernet_4xb4-160k_ade20k-512x512.py": "mmvssm.Vim",
}


@pytest.fixture(scope="module")
def config_folder(python, output, tmp_path_factory):
    code = "import mmvssm; print(mmvssm.__path__[0])"
    package = output(python, "-c", code, cwd=tmp_path_factory.mktemp("cwd")).strip()
    return os.path.join(package, ".mim", "configs")


def test_import_is_light(python, output, sources, tmp_path):
    code = "import mmvssm, sys; print(mmvssm.__file__, *sys.modules, sep='\\n')"
    file, *modules = output(python, "-c", code, cwd=tmp_path).splitlines()
    # from the environment or the copied sources, never from the repository
    assert file.startswith((str(python.parents[1]), str(sources)))
    assert not {"torch", "mmcv", "mmvssm.models", "mmvssm.ops"} & set(modules)


@pytest.mark.parametrize("form", FORMS)
def test_inherits_from_outside(form, python, output, config_folder, tmp_path):
    relative = os.path.relpath(config_folder, tmp_path)
    files = [f"mine{number}.py" for number in range(len(INHERITED))]
    for name, file in zip(INHERITED, files):
        base = FORMS[form].format(name=name, folder=config_folder, relative=relative)
        (tmp_path / file).write_text(f"_base_ = {base}\ndata_root = 'elsewhere'\n")
    lines = output(python, "-c", LOAD, *files, cwd=tmp_path).splitlines()
    for name, loaded in zip(INHERITED, map(json.loads, lines), strict=True):
        assert loaded["backbone"]["type"] == INHERITED[name]
        assert loaded["data_root"] == "elsewhere"


def test_every_published_config_is_found_by_name(python, output, tmp_path):
    """``mmvssm::name`` after the import, the hub's lookup, and the path give one config.

    All are found by path; the other forms, which take MMEngine long, are tried on one of each task
    and family.
    """
    code = """
import functools, mmvssm, pathlib, yaml
from mmengine.config import Config, config, utils
from mmengine.hub import get_config
# MMEngine would read all metafiles of a library for every name
config.is_installed = functools.cache(config.is_installed)
utils.load = functools.cache(utils.load)
mim = pathlib.Path(mmvssm.__path__[0], '.mim')
index = yaml.safe_load((mim / 'model-index.yml').read_text())
metafiles = [yaml.safe_load((mim / file).read_text()) for file in index['Import']]
names = [model['Config'] for metafile in metafiles for model in metafile['Models']]
tried = set()
for name in names:
    name = name.removeprefix('configs/')
    path = mmvssm.config_path(name)
    kind = name.split('/')[0], name.split('_')[-1]
    if kind in tried:
        continue
    tried.add(kind)
    by_path = Config.fromfile(path)
    pathlib.Path('mine.py').write_text(f"_base_ = 'mmvssm::{name}'")
    for found in (Config.fromfile('mine.py'), get_config(f'mmvssm::{name}')):
        assert found.model.backbone == by_path.model.backbone, name
        assert found.train_dataloader.dataset.type == by_path.train_dataloader.dataset.type, name
print(*names)
"""
    names = output(python, "-c", code, cwd=tmp_path).split()
    assert len(names) == len(set(names)) > 100


def test_python_style_config(python, output, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead\n"
        "from mmvssm.models import VMamba\n"
        "model = dict(\n"
        "    type=ImageClassifier,\n"
        "    backbone=dict(type=VMamba, arch='tiny-s1l8', out_indices=(3,)),\n"
        "    neck=dict(type=GlobalAveragePooling),\n"
        "    head=dict(type=LinearClsHead, num_classes=3, in_channels=768),\n"
        ")\n"
    )
    code = """
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
model = MODELS.build(Config.fromfile('mine.py').model).eval()
print(type(model.backbone).__module__, tuple(model(torch.rand(1, 3, 64, 64)).shape))
"""
    printed = output(python, "-W", "ignore", "-c", code, cwd=tmp_path)
    assert printed.split(maxsplit=1) == ["mmvssm.models.backbones.vmamba", "(1, 3)\n"]


def test_unknown_config_is_named(python, run, tmp_path):
    code = "import mmvssm; mmvssm.config_path('demo/vmamba-micro_digit-cls.py')"
    done = run(python, "-c", code, cwd=tmp_path)
    assert done.returncode != 0
    assert "no config 'demo/vmamba-micro_digit-cls.py'" in done.stderr
    assert DEMO in done.stderr


def test_wheel_holds_package_and_shared_files_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mmvssm"}
    for shared in (f"configs/{DEMO}", "configs/vmamba/metafile.yml", "tools/train.py",
                   "tools/dist_train.sh", "model-index.yml"):  # fmt: skip
        assert f"mmvssm/.mim/{shared}" in names
    assert "mmvssm/py.typed" in names
    # what NVRTC compiles, and no more of the native code
    sources = {name.removeprefix("mmvssm/ops/csrc/") for name in names if "/csrc/" in name}
    folder = ROOT / "ops" / "csrc"
    wanted = [*folder.glob("c[ou]*/*.h"), *folder.glob("cuda/*.cuh"), *folder.glob("nvrtc/*")]
    wanted = {path.relative_to(folder).as_posix() for path in wanted}
    wanted |= {f"cuda/scan{form}_host.cpp" for form in ("", "_1d", "_2d")}
    assert sources == wanted
    # its code is part of the tests
    assert "mmvssm/.mim/tools/verify_golden.py" not in names


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is without CUDA")
def test_installed_sources_compile(python, output, tmp_path):
    """NVRTC finds the sources in the package, wherever that is."""
    code = """
from mmvssm.ops.nvrtc.compiler import find_compiler
program = '#include "cuda/collect.cuh"'
print(*find_compiler().compile(program, "sm_90", "mmvssm::cuda::sum_slots_kernel<float, 4, 1>")[:1])
"""
    assert "sum_slots_kernel" in output(python, "-W", "ignore", "-c", code, cwd=tmp_path)


def test_lost_links_are_mended(sources, output, tmp_path):
    """Links of a checkout that were lost in copying are made again."""
    copy = tmp_path / "copy"
    shutil.copytree(sources, copy, symlinks=True)
    folder = copy / "mmvssm" / ".mim"
    for name in ("configs", "model-index.yml"):
        (folder / name).unlink()
        (folder / name).write_text(f"../../{name}")
    (folder / "tools").unlink()
    (copy / "mmvssm" / "ops" / "csrc").unlink()
    output(sys.executable, "setup.py", "--version", cwd=copy, MMVSSM_WITH_OPS="0")
    assert (folder / "configs" / DEMO).samefile(copy / "configs" / DEMO)
    assert (folder / "model-index.yml").samefile(copy / "model-index.yml")
    assert (folder / "tools" / "train.py").is_file()
    assert (copy / "mmvssm" / "ops" / "csrc" / "cuda" / "device.cuh").is_file()


def test_without_ops_pytorch_runs(wheel_python, output, tmp_path):
    printed = output(wheel_python, "-W", "ignore", "-m", "mmvssm.ops", cwd=tmp_path)
    assert "compiled kernels:         none" in printed
    assert "check on cpu:             ok" in printed


def test_hidden_torch_is_an_error(run, sources, tmp_path):
    """Build isolation hides torch: the ops must not be skipped silently."""
    site = Path(importlib.util.find_spec("setuptools").origin).parents[1]
    for name in ("_distutils_hack", "pkg_resources", "setuptools"):
        (tmp_path / name).symlink_to(site / name)
    command = [sys.executable, "-S", "setup.py", "--version"]
    done = run(*command, cwd=sources, PYTHONPATH=str(tmp_path))
    assert done.returncode != 0
    assert "--no-build-isolation" in done.stderr
    done = run(*command, cwd=sources, PYTHONPATH=str(tmp_path), MMVSSM_WITH_OPS="0")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_wheel_with_ops(sources, output, wheel_python, tmp_path):
    """A build with ops carries the extension."""
    options = ["-q", "--no-build-isolation", "--no-deps", "-w", tmp_path]
    pip = [wheel_python, "-m", "pip", "wheel", *options, sources]
    output(*pip, cwd=tmp_path, MMVSSM_WITH_OPS="1")
    (wheel,) = tmp_path.glob("mmvssm-*.whl")
    assert any(name.startswith("mmvssm/_vssm_ext.") for name in zipfile.ZipFile(wheel).namelist())
