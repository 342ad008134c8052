"""Fixtures: analysis tools run in this process, and micro networks of all families."""

import runpy
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from mmvssm.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
DEMOS = sorted((ROOT / "configs" / "demo").glob("*micro_digits-cls.py"))


@pytest.fixture(params=DEMOS, ids=[path.stem.partition("-micro")[0] for path in DEMOS])
def demo_config(request):
    """Path of the config of a demo's classifier."""
    return request.param


@pytest.fixture
def demo(demo_config):
    """Builds the backbone of a demo's classifier with other options."""
    options = dict(Config.fromfile(demo_config).model.backbone)
    kind = options.pop("type").removeprefix("mmvssm.")
    family = next(family for family in FAMILIES.values() if family.names_it(kind))
    return lambda **changes: family.backbone(**{**options, **changes}).eval()


@pytest.fixture
def run_tool(capsys, monkeypatch):
    """Runs a tool; returns its exit status (0 or a message) and what it printed."""

    def run(tool, *arguments):
        monkeypatch.setattr(sys, "argv", [str(tool), *map(str, arguments)])
        capsys.readouterr()
        try:
            runpy.run_path(str(tool), run_name="__main__")
        except SystemExit as stop:
            return stop.code, capsys.readouterr()
        return 0, capsys.readouterr()

    return run
