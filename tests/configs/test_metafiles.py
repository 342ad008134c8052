"""The metafiles agree with the configs, the models they build, and the generated pages."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config

from mmvssm.analysis import count_flops
from mmvssm.families import FAMILIES, arch_names
from mmvssm.zoo import build_model

ROOT = Path(__file__).resolve().parents[2]
INDEX = ROOT / "model-index.yml"
FILES = [Path(file) for file in yaml.safe_load(INDEX.read_text())["Import"]]
FOLDERS = {file.parent.name: ROOT / file.parent for file in FILES}
METAFILES = {
    family: yaml.safe_load((folder / "metafile.yml").read_text())
    for family, folder in FOLDERS.items()
}
MODELS = {model["Name"]: model for content in METAFILES.values() for model in content["Models"]}
IMAGENET = [name for name, model in MODELS.items() if "in1k" in name]
DENSE = [name for name in MODELS if name not in IMAGENET]
#: Networks of MambaVision that differ from others in their windows, which detectors change anyway.
OTHER_WINDOWS = ("large2-512", "large3-256", "large3-512")
SMALLEST = [f"{family.prefix}-{next(iter(family.backbone.arch_settings))}"
            for family in FAMILIES.values()]  # fmt: skip


def by_cost(names, quick):
    """Return parameters of a test, of which only the quick ones run by default."""
    return [name if quick(name) else pytest.param(name, marks=pytest.mark.slow) for name in names]


def variant(name):
    detectors = ("mask-rcnn", "cascade-mask-rcnn", "retinanet")
    return next(part for part in name.split("_") if part not in detectors)


def build(name):
    """Build the model of a config, without memory for its weights."""
    with torch.device("meta"):
        return build_model(Config.fromfile(ROOT / MODELS[name]["Config"]))


def test_every_config_has_an_entry_and_every_entry_a_config():
    folders = [path.parent for path in (ROOT / "configs").glob("*/metafile.yml")]
    configs = {path for folder in folders for path in folder.glob("*.py")}
    assert {ROOT / model["Config"] for model in MODELS.values()} == configs
    for family, content in METAFILES.items():
        (collection,) = content["Collections"]
        assert ROOT / collection["README"] == FOLDERS[family] / "README.md"
        for model in content["Models"]:
            assert ROOT / model["Config"] == FOLDERS[family] / f"{model['Name']}.py"
            assert model["In Collection"] == collection["Name"]
        assert collection["Name"] == FAMILIES[family].backbone.__name__


def test_index_is_complete():
    assert set(METAFILES) == set(FAMILIES)
    assert set(FOLDERS.values()) == {
        path.parent for path in (ROOT / "configs").glob("*/metafile.yml")
    }


def test_names_are_unique_in_the_package():
    stems = [path.stem for path in (ROOT / "configs").glob("[!_]*/*.py")]
    assert len(stems) == len(set(stems))
    assert len(MODELS) == sum(len(content["Models"]) for content in METAFILES.values())


def test_every_arch_is_there():
    for name, (_, arch) in arch_names().items():
        if arch.endswith("-search"):
            continue
        assert {f"{name}_8xb128_in1k", f"{name}_in21k-pre_8xb128_in1k"} & set(IMAGENET)
        others = ("-mid-cls", "-stride8", "-unsearched", "-0220", "-m2")
        dense = not arch.endswith(others) and arch not in OTHER_WINDOWS
        for wanted in (
            f"mask-rcnn_{name}_fpn_1x_coco",
            f"mask-rcnn_{name}_fpn_ms-3x_coco",
            f"{name}_upernet_4xb4-160k_ade20k-512x512",
        ):
            assert (wanted in MODELS) == dense, wanted
    # and two of Vim with the published batch, three of LocalMamba's search, two of MambaVision's
    # networks that were pretrained on more
    assert len(IMAGENET) == 35 + 9 + 2 + 3 + 2


def test_results_are_marked_as_the_authors():
    results = [result for model in MODELS.values() for result in model.get("Results", ())]
    assert len(results) > 110 and all(result["Metrics"] for result in results)
    # which `mim search` shows
    for content in METAFILES.values():
        assert content["Collections"][0]["Metadata"]["Results From"] == "authors"


#: Results that a text copy of a paper alone gives: box and mask AP, mIoU with scales and flip.
TEXT_ONLY = {
    "mask-rcnn_efficient-vmamba-base_fpn_ms-3x_coco": {"mask AP": 40.8},
    "mask-rcnn_msvmamba-v3-tiny_fpn_ms-3x_coco": {"box AP": 48.7, "mask AP": 43.4},
    "mask-rcnn_msvmamba-v3-small_fpn_1x_coco": {"box AP": 48.1, "mask AP": 43.2},
    "mask-rcnn_msvmamba-v3-small_fpn_ms-3x_coco": {"box AP": 49.7, "mask AP": 44.2},
    "msvmamba-v3-tiny_upernet_4xb4-160k_ade20k-512x512": {"mIoU(ms+flip)": 48.5},
}


def test_results_of_one_text_copy_are_marked():
    marked = {}
    for name, model in MODELS.items():
        for result in model.get("Results", ()):
            if "(text)" in result["Source"]:
                marked.setdefault(name, {}).update(result["Metrics"])
    assert marked == TEXT_ONLY
    page = (ROOT / "docs" / "model_zoo.md").read_text()
    for name in marked:
        (row,) = re.findall(rf"^\|.*/{name}\.py\).*$", page, re.MULTILINE)
        assert "(text)" in row
    assert page.count("(text): taken from a text copy of the paper") == 2


def test_model_index_library_reads_it():
    """MIM's search and download use this library."""
    modelindex = pytest.importorskip("modelindex")
    index = modelindex.load(str(INDEX))
    index.build_models_with_collections()
    models = {model.name: model for model in index.models}
    assert set(models) == set(MODELS) and not index.check_errors
    model = models["vmamba-v0-tiny_8xb128_in1k"].full_model
    assert model.metadata.data["Parameters"] == 22893448
    assert model.results.data[0].data["Metrics"] == {"Top 1 Accuracy": 82.2}


def test_released_files_are_of_configs():
    released = [file for family in FAMILIES.values() for file in family.released]
    names = {file.config for file in released}
    assert len({file.name for file in released}) == len(released) > 70 and names <= MODELS.keys()
    for family in FAMILIES.values():
        folder = FOLDERS[family.name]
        assert all((folder / f"{file.config}.py").is_file() for file in family.released)


def test_licences_of_weights_are_said():
    limited = [family for family in FAMILIES.values() if family.licence]
    assert [family.name for family in limited] == ["mambavision"]
    for page in ("README.md", "docs/model_zoo.md", "configs/mambavision/README.md"):
        text = " ".join((ROOT / page).read_text().replace("[", "").split())
        assert limited[0].licence.removesuffix(")") in text


@pytest.mark.parametrize(
    "name", by_cost(IMAGENET, lambda n: n.startswith("vmamba-") or variant(n) in SMALLEST)
)
def test_parameters_and_flops_of_classifiers(name):
    metadata, model = MODELS[name]["Metadata"], build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == metadata["Parameters"]
    size = metadata.get("Image Size", "224x224").split("x")
    cost = next(f.cost for f in FAMILIES.values() if type(model.backbone) is f.backbone)
    found = count_flops(model, tuple(map(int, size)))
    assert found.parameters == metadata["Parameters"]
    assert found.macs == pytest.approx(metadata["FLOPs"], rel=cost.precision)


@pytest.mark.parametrize(
    "name",
    by_cost(DENSE, lambda n: variant(n) in SMALLEST and re.search("_1x_|4xb4-160k.*512$", n)),
)
def test_parameters_and_flops_of_detectors_and_segmentors(name):
    metadata, model = MODELS[name]["Metadata"], build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == metadata["Parameters"]
    assert count_flops(model).macs == pytest.approx(metadata["FLOPs"], rel=1e-3)


#: Millions of parameters and giga-FLOPs of Mask R-CNN and UperNet.
PUBLISHED = {
    "vmamba-v0-tiny": (42.40, 285.9, 55, 964),
    "vmamba-v0-small": (63.92, 400.3, 76, 1081),
    "vmamba-v0-base": (95.63, 539.8, 110, 1226),
    "vmamba-tiny-s2l5": (50.21, 270.2, 62.36, 947.8),
    "vmamba-small-s2l15": (69.65, 348.9, 81.80, 1028.4),
    "vmamba-base-s2l15": (108, 485.5, 122.07, 1170.3),
    "vmamba-tiny-s1l8": (49.76, 271.2, 61.90, 948.8),
    "msvmamba-micro": (32, 201, 42, 875),
    # the paper says 252, see its page
    "msvmamba-tiny": (53, 265, 65, 942),
    "msvmamba-v3-tiny": (52, 275),
    "msvmamba-v3-small": (70, 349),
    "efficient-vmamba-small": (31, 197),
    "efficient-vmamba-base": (53, 252, 65, 930),
    "local-vmamba-tiny": (45, 291, 57, 970),
    "local-vmamba-small": (69, 414, 81, 1095),
}


@pytest.mark.parametrize("arch", PUBLISHED)
def test_detectors_and_segmentors_are_the_published_ones(arch):
    names = (f"mask-rcnn_{arch}_fpn_1x_coco", f"{arch}_upernet_4xb4-160k_ade20k-512x512")
    pairs = zip(PUBLISHED[arch][::2], PUBLISHED[arch][1::2])
    for name, (millions, flops) in zip(names, pairs):
        metadata = MODELS[name]["Metadata"]
        digits = 0 if isinstance(millions, int) else 2
        assert round(metadata["Parameters"] / 1e6, digits) == millions
        # whole numbers are rounded, or cut off
        assert metadata["FLOPs"] / 1e9 == pytest.approx(flops, rel=2e-3 if digits else 4e-3)


def test_local_vim_counted_as_vim():
    """The figures that its page gives next to the authors'."""
    text = " ".join((FOLDERS["local_vim"] / "README.md").read_text().split())
    for arch in ("tiny", "tiny-mid-cls", "small"):
        macs = count_flops(build(f"local-vim-{arch}_8xb128_in1k"), cost=FAMILIES["vim"].cost).macs
        assert f"`{arch}`" in text and f"{macs / 1e9:.2f} G" in text, (arch, macs)


def run_zoo(root, *options):
    command = [sys.executable, str(root / "tools" / "model_zoo.py"), *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_pages_are_up_to_date():
    done = run_zoo(ROOT, "--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path):
    """What the tool reads and writes."""
    for folder in FOLDERS.values():
        (tmp_path / "configs" / folder.name).mkdir(parents=True)
        for name in ("README.md", "metafile.yml"):
            shutil.copy(folder / name, tmp_path / "configs" / folder.name)
    for name in ("model-index.yml", "tools/model_zoo.py", "docs/model_zoo.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_change_of_a_metafile_reaches_the_pages(copy):
    pages = [copy / "configs" / "vim" / "README.md", copy / "docs" / "model_zoo.md"]
    change(
        copy / "configs" / "vim" / "metafile.yml", "Top 5 Accuracy: 95.8", "Top 5 Accuracy: 12.3"
    )
    before = [page.read_text() for page in pages]
    done = run_zoo(copy, "--check")
    assert done.returncode == 1 and "run tools/model_zoo.py" in done.stderr
    assert done.stdout == "out of date: configs/vim/README.md\nout of date: docs/model_zoo.md\n"
    assert [page.read_text() for page in pages] == before
    assert run_zoo(copy).returncode == 0
    assert [page.read_text() for page in pages] == [text.replace("95.8", "12.3") for text in before]
    assert run_zoo(copy, "--check").stdout == "all pages are up to date\n"


def test_what_the_tool_refuses(copy):
    readme = copy / "configs" / "vim" / "README.md"
    change(readme, "<!-- End of the tables. -->", "")
    done = run_zoo(copy)
    assert done.returncode == 1 and "configs/vim/README.md must have once each" in done.stderr
    shutil.copy(ROOT / "configs" / "vim" / "README.md", readme)
    change(copy / "configs" / "vim" / "metafile.yml", "Source: README", "Source: mmvssm")
    done = run_zoo(copy)
    assert done.returncode == 1 and "vim-tiny_8xb128_in1k" in done.stderr
    assert "'README' or 'log', got 'mmvssm'" in done.stderr
    shutil.rmtree(copy / "docs")
    done = run_zoo(copy)
    assert done.returncode == 1 and "is not a checkout" in done.stderr


def test_help():
    text = run_zoo(ROOT, "--help").stdout
    assert "--check" in text and "metafile.yml" in text and "docs/model_zoo.md" in text


def test_links_of_the_pages_lead_to_files():
    pages = [ROOT / "docs" / "model_zoo.md"]
    pages += [folder / "README.md" for folder in FOLDERS.values()]
    for page in pages:
        links = re.findall(r"\]\(([^)]+)\)", page.read_text())
        for link in links:
            assert link.startswith("https://") or (page.parent / link).is_file(), (page, link)
        for command in re.findall(r"(?:configs|tools)/[\w./-]*\.(?:py|sh)", page.read_text()):
            assert (ROOT / command).is_file() or (page.parent.parent / command).is_file(), command


@pytest.mark.parametrize("family", by_cost(FAMILIES, lambda name: name == "vim"))
def test_picture_is_what_the_command_draws(family, tmp_path):
    text = (FOLDERS[family] / "README.md").read_text()
    ((options, target),) = re.findall(
        r"^python tools/analysis_tools/routes\.py (.*?)(?: \\\n +| )--out (\S+\.png)$",
        text, re.MULTILINE,
    )  # fmt: skip
    committed = ROOT / target
    assert target == f"docs/routes/{FAMILIES[family].prefix}.png" and f"](../../{target})" in text
    assert committed.stat().st_size <= 60_000
    tool = ROOT / "tools" / "analysis_tools" / "routes.py"
    command = [sys.executable, str(tool), *options.split(), "--out", "new.png"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": path})
    old, new = cv2.imread(str(committed)), cv2.imread(str(tmp_path / "new.png"))
    # fonts and edges may differ from one matplotlib to the next, which cuts them off
    assert np.abs(np.subtract(old.shape, new.shape)).max() <= 2
    size = old.shape[1] // 4, old.shape[0] // 4
    old, new = (cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in (old, new))
    assert np.abs(old.astype(int) - new).mean() < 6  # 20 and more for other routes
