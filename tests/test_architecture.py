"""Who may import whom: downwards only, as the layers of the package lie on one another."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mmvssm"
# A layer may import what its line names; `.` files of the package's root are open to all.
MAY_IMPORT = {
    "ops": set(),
    "models": {"ops"},
    "engine": {"checkpoint", "hub", "models", "ops"},
    "hub": {"checkpoint", "families"},
    "families": {"models", "ops"},
    "checkpoint": {"families", "models", "ops"},
    "analysis": {"checkpoint", "families", "hub", "models", "ops"},
    "app": {"analysis", "engine", "models"},
}
MODULES = {file: file.relative_to(PACKAGE).parts for file in sorted(PACKAGE.rglob("*.py"))}


def imported(file, parts):
    """Names below mmvssm that a module imports, as tuples of their parts."""
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


def test_layers_are_all_folders_with_code():
    folders = {parts[0] for parts in MODULES.values() if len(parts) > 1}
    assert folders - {".mim"} == set(MAY_IMPORT)


def test_ops_need_torch_alone():
    """No OpenMMLab library is needed to run a scan; mmcv is looked for, and may be absent."""
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
