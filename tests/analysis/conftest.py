"""The tools of analysis, run in this process."""

import runpy
import sys

import pytest


@pytest.fixture
def run_tool(capsys, monkeypatch):
    """Runs a tool: its exit status, 0 or a message, and what it printed."""

    def run(tool, *arguments):
        monkeypatch.setattr(sys, "argv", [str(tool), *map(str, arguments)])
        capsys.readouterr()
        try:
            runpy.run_path(str(tool), run_name="__main__")
        except SystemExit as stop:
            return stop.code, capsys.readouterr()
        return 0, capsys.readouterr()

    return run
