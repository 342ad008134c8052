"""mmvssm with only some of the libraries: what works, and the errors for the rest."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from abilities import without_noise

ROOT = Path(__file__).resolve().parents[2]
#: Names of the libraries in site-packages, by import name.
LIBRARIES = {
    "mmcv": ("mmcv",),
    "mmpretrain": ("mmpretrain",),
    "mmdet": ("mmdet",),
    "mmseg": ("mmseg", "mmsegmentation"),
}
CONFIGS = {
    "mmpretrain": "vmamba/vmamba-tiny-s1l8_8xb128_in1k.py",
    "mmdet": "vmamba/mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco.py",
    "mmsegmentation": "vmamba/vmamba-tiny-s1l8_upernet_4xb4-160k_ade20k-512x512.py",
}
#: Small arguments by family.
SMALL = {
    "EfficientVMamba": dict(arch="tiny"),
    "LocalVMamba": dict(arch="tiny"),
    "LocalVim": dict(arch="tiny"),
    "MSVMamba": dict(arch="nano"),
    "MambaVision": dict(arch="tiny"),
    "VMamba": dict(arch="v0-tiny"),
    "Vim": dict(arch="tiny"),
}


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """A function: the interpreter of an environment that lacks libraries of the running one.

    Its packages are links to those of the running one; mmcv may be there without its ops, and
    a distribution under another name.
    """

    def make(*missing, without_ops=False, renamed=("", "")):
        folder = tmp_path_factory.mktemp("without")
        command = [sys.executable, "-m", "venv", "--without-pip", folder]
        subprocess.run(command, check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        hidden = {name for library in missing for name in LIBRARIES[library]}
        hidden |= {"mmvssm", "mmcv"} if without_ops else {"mmvssm"}
        origins = (importlib.util.find_spec(name).origin for name in ("torch", "mmengine", "mmcv"))
        for packages in {Path(origin).parents[1] for origin in origins}:
            for entry in packages.iterdir():
                if entry.name.split("-")[0] not in hidden and entry.suffix != ".pth":
                    (site / entry.name.replace(*renamed)).symlink_to(entry)
            if without_ops and (packages / "mmcv").is_dir():
                link_without_ops(packages, site)
        return folder / "bin" / "python"

    return make


def link_without_ops(packages, site):
    """Lay mmcv out as mmcv-lite is: everything but the compiled ops."""
    (site / "mmcv").mkdir()
    for entry in (packages / "mmcv").iterdir():
        if not entry.name.startswith("_ext"):
            (site / "mmcv" / entry.name).symlink_to(entry)
    for entry in packages.glob("mmcv-*"):
        (site / entry.name).symlink_to(entry)


def run(python, *arguments):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env.pop("VIRTUAL_ENV", None)
    command = [str(python), "-W", "ignore", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def printed(python, code, *arguments):
    done = run(python, "-c", code, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def mmengine_alone(without):
    return without("mmcv", "mmpretrain", "mmdet", "mmseg")


BACKBONES = """
import importlib.util, json, sys, torch
import mmvssm, mmvssm.ops, mmvssm.engine
from mmengine.registry import MODELS
assert not any(map(importlib.util.find_spec, ('mmcv', 'mmpretrain', 'mmdet', 'mmseg')))
small = json.loads(sys.argv[1])
assert sorted(mmvssm.models.backbones.__all__) == sorted(small), mmvssm.models.backbones.__all__
for name, options in small.items():
    model = MODELS.build(dict(type=f'mmvssm.{name}', **options)).train()
    outputs = model(torch.rand(2, 3, 64, 64))
    outputs[-1].float().sum().backward()
    print(name, len(outputs[-1]))
print(len(mmvssm.list_models()))
"""


def test_backbones_need_mmengine_alone(mmengine_alone):
    """They are plain modules: built, run and differentiated without mmcv."""
    *lines, models = printed(mmengine_alone, BACKBONES, json.dumps(SMALL)).splitlines()
    assert lines == [f"{name} 2" for name in SMALL]
    assert int(models) > 100


GET = """
import sys, mmvssm
for name in sys.argv[1:]:
    try:
        print('got', type(mmvssm.get_model(name)).__name__)
    except ModuleNotFoundError as error:
        print('got', error)
"""


def get(python, *libraries):
    """Get the models of the libraries: each gives a class or an error message."""
    names = [Path(CONFIGS[library]).stem for library in libraries]
    lines = printed(python, GET, *names).splitlines()
    return [line.removeprefix("got ") for line in lines if line.startswith("got ")]


def test_models_name_the_missing_library(mmengine_alone):
    for library, said in zip(CONFIGS, get(mmengine_alone, *CONFIGS), strict=True):
        name = Path(CONFIGS[library]).stem
        assert said.startswith(f"the model '{name}' needs {library}, which is not installed; ")


def test_training_names_the_missing_library(mmengine_alone):
    config = f"configs/{CONFIGS['mmdet']}"
    done = run(mmengine_alone, "tools/train.py", config)
    assert done.returncode == 1
    (line,) = without_noise(done.stderr).splitlines()
    assert line.startswith(f"train.py: error: config '{config}' needs mmdet, which is not")


#: Tools that run a full network on an image: arguments between the config and the image.
LOOKING = {
    "prediction": ["tools/predict.py", "-o", "out"],
    "the network of this config": ["tools/analysis_tools/cam.py", "--out", "cam.json"],
}


@pytest.mark.parametrize("config", ["inherits", "whole"])
@pytest.mark.parametrize("need", LOOKING)
def test_looking_at_images_names_the_missing_library(mmengine_alone, tmp_path, need, config):
    """Configs that inherit from the library, and one dumped by a training, name it, too."""
    tool, *options = LOOKING[need]
    path = ROOT / "configs" / "demo" / "vmamba-micro_digits-cls.py"
    if config == "whole":
        path = tmp_path / "whole.py"
        path.write_text(
            "default_scope = 'mmpretrain'\nmodel = dict(type='ImageClassifier')\n"
            "test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile')]))\n"
        )
    weights, image = tmp_path / "weights.pth", tmp_path / "image.png"
    torch.save(dict(state_dict={"weight": torch.zeros(1)}), weights)
    cv2.imwrite(str(image), np.zeros((32, 32, 3), np.uint8))
    options = [tmp_path / option if option[0] != "-" else option for option in options]
    done = run(mmengine_alone, tool, path, weights, image, *options)
    assert done.returncode == 1
    need = f"config '{path}'" if config == "inherits" else need
    said = f"{need} needs mmpretrain, which is not installed; for the version, see requirements"
    error = without_noise(done.stderr)
    assert error.startswith(f"{Path(tool).name}: error: {said}"), error


@pytest.mark.parametrize("tool", ["erf", "influence"])
def test_backbones_are_explained_by_mmengine_alone(mmengine_alone, tmp_path, tool):
    """Images are read without mmcv."""
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), np.zeros((40, 30, 3), np.uint8))
    arguments = {
        "erf": ["get_erf.py", "vmamba-tiny-s1l8", "--images", tmp_path, "--size", 32],
        "influence": ["influence.py", "vmamba-tiny-s1l8", image, "--size", 32],
    }[tool]
    script = f"tools/analysis_tools/{arguments[0]}"
    done = run(mmengine_alone, script, *arguments[1:], "--out", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("library", CONFIGS)
def test_one_library_is_enough(library, without):
    others = [name for name in LIBRARIES if name != "mmcv" and library not in LIBRARIES[name]]
    python = without(*others)
    for other, said in zip(CONFIGS, get(python, *CONFIGS), strict=True):
        assert ("which is not installed" in said) == (other != library), said


def test_mmcv_without_ops(without):
    """It is enough for mmpretrain, but not for mmdet and mmseg, whose errors say why."""
    python = without(without_ops=True)
    classifier, detector = get(python, "mmpretrain", "mmdet")
    assert classifier == "ImageClassifier"
    assert detector.startswith("a config of mmdet needs mmcv with its compiled ops")


FORK = """
import sys
import mmvssm
from mmengine.config import Config
print(Config.fromfile(mmvssm.config_path(sys.argv[1])).default_scope)
"""


def test_configs_of_the_fork_of_mmseg_are_read(without):
    """Its distribution has a name other than the one that MMEngine looks for."""
    python = without(renamed=("mmsegmentation-", "onedl_mmsegmentation-"))
    assert printed(python, FORK, CONFIGS["mmsegmentation"]) == "mmseg\n"


HEADERS = """
import sys
sys.path.insert(0, 'ops')
import build
print(*[folder for folder in build.extensions()[0].include_dirs if 'mmcv' in folder])
"""


def test_build_without_mmcv(mmengine_alone):
    """The extension is still described, without mmcv's headers."""
    built, headers = printed(mmengine_alone, HEADERS).splitlines()
    assert built.startswith("mmvssm: building native ops for cpu")
    assert headers == ""
