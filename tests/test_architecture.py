"""Import rules: a layer of the package may import only from the layers below it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mmvssm"


def read_layers():
    """Read the table of the architecture page: what each layer may import."""
    page = (ROOT / "ARCHITECTURE.md").read_text()
    rows = re.search(r"\| layer \| may import \|\n.*\n((?:\|.*\n)+)", page)[1].splitlines()
    names = [re.findall(r"`(\w+)`", row) for row in rows]
    return {layer: set(others) for layer, *others in names}


# Files of the package's root are open to all.
MAY_IMPORT = read_layers()
MODULES = {file: file.relative_to(PACKAGE).parts for file in sorted(PACKAGE.rglob("*.py"))}


def imported(file, parts):
    """Return the names in mmvssm that a module imports, as tuples of their parts."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = ("mmvssm", *parts[: len(parts) - node.level])
            names = [".".join(filter(None, (*base, node.module or node.names[0].name)))]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        else:
            continue
        yield from (tuple(name.split(".")[1:]) for name in names if name.split(".")[0] == "mmvssm")


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_lead_downwards(layer):
    wrong = [
        (file.name, ".".join(name))
        for file, parts in MODULES.items()
        if parts[0] == layer
        for name in imported(file, parts)
        if name and name[0] in MAY_IMPORT and name[0] not in MAY_IMPORT[layer] | {layer}
    ]
    assert not wrong


def test_layers_stand_above_what_they_import():
    layers = list(MAY_IMPORT)
    for place, layer in enumerate(layers):
        assert MAY_IMPORT[layer] <= set(layers[place + 1 :]), layer


def test_layers_are_all_folders_with_code():
    folders = {parts[0] for parts in MODULES.values() if len(parts) > 1}
    assert folders - {".mim"} == set(MAY_IMPORT)


def test_ops_need_torch_alone():
    """No OpenMMLab library is needed to run a scan; mmcv is optional."""
    for file, parts in MODULES.items():
        if parts[0] != "ops":
            continue
        roots = {
            (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level)
        }
        allowed = {"mmcv"} if file.name == "__init__.py" else set()
        assert not roots & {"mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain"} - allowed, file
