"""The README's examples work, and what it names exists."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmvssm.families import FAMILIES, arch_names
from mmvssm.models.backbones.hierarchical import HierarchicalBackbone

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CONFIGS = [example for example in EXAMPLES if "_base_" in example]


@pytest.mark.parametrize("library", ["mmpretrain", "mmdet", "mmseg"])
def test_config_example_builds(library, tmp_path):
    (example,) = (text for text in CONFIGS if f"{library}::_base_" in text)
    (tmp_path / "example.py").write_text(example)
    cfg = Config.fromfile(tmp_path / "example.py")
    assert cfg.default_scope == library
    init_default_scope(library)
    model = importlib.import_module(f"{library}.registry").MODELS.build(cfg.model)
    assert type(model).__module__.startswith(library)
    assert type(model.backbone).__name__ == "VMamba"
    assert "train_cfg" in cfg and "train_dataloader" in cfg


def test_python_example_runs():
    (example,) = (text for text in EXAMPLES if "import torch" in text)
    names = {}
    exec(example, names)
    assert [tuple(m.shape) for m in names["maps"]] == [
        (1, 96, 56, 56),
        (1, 192, 28, 28),
        (1, 384, 14, 14),
        (1, 768, 7, 7),
    ]


def test_arch_table_is_complete_and_counts_parameters():
    """Every published variant; the networks of LocalMamba's search are not."""
    listed, type_name = {}, ""
    rows = re.findall(r"^\|(.*)\| `([\w-]+)` \| ([\d.]+) M \|", README, re.MULTILINE)
    for first, arch, millions in rows:
        type_name = first.strip(" `") or type_name
        listed[type_name, arch] = millions
    backbones = {family.type: family.backbone for family in FAMILIES.values()}
    assert listed.keys() == {
        (family.type, arch)
        for family, arch in arch_names().values()
        if not arch.endswith("-search")
    }
    for (type_name, arch), millions in listed.items():
        backbone = backbones[type_name]
        options = dict(out_indices=(3,)) if issubclass(backbone, HierarchicalBackbone) else {}
        with torch.device("meta"):
            model = backbone(arch, **options)
        dims = model.embed_dims if isinstance(model.embed_dims, int) else model.embed_dims[-1]
        count = sum(p.numel() for p in model.parameters()) + 1000 * (dims + 1)
        assert f"{count / 1e6:.1f}" == millions, (type_name, arch)


def test_named_files_and_targets_exist():
    files = re.findall(r"(?:benchmarks|configs|requirements|tests|tools)/[\w./-]*\w", README)
    for name in files:
        assert (ROOT / name).exists(), name
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z][a-z-]*)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
