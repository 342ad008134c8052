"""Scripts that set up environments, and the page of the environments that were tested."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(name, monkeypatch):
    """Import a script of the folder .dev, which is not a package."""
    monkeypatch.syspath_prepend(str(ROOT / ".dev"))
    spec = importlib.util.spec_from_file_location(name, ROOT / ".dev" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_setup_of_mmcv_is_mended(monkeypatch, tmp_path):
    """The compiler's standard is left to torch; the version is read on Python 3.13 as well."""
    monkeypatch.chdir(tmp_path)
    Path("version.py").write_text("__version__ = '2.1.0'\n")
    setup = tmp_path / "setup.py"
    setup.write_text(
        "flags = ['-Wall', '-std=c++17']\nalone = ['-std=c++14', '-O2']\n"
        "def get_version():\n"
        "    version_file = 'version.py'\n"
        "    with open(version_file, encoding='utf-8') as f:\n"
        "        exec(compile(f.read(), version_file, 'exec'))\n"
        "    return locals()['__version__']\n"
    )
    script("install_mmcv", monkeypatch).mend(setup)
    scope = {}
    exec(setup.read_text(), scope)
    assert scope["flags"] == ["-Wall"] and scope["alone"] == ["-O2"]
    assert scope["get_version"]() == scope["__version__"] == "2.1.0"


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("29 failed, 4698 passed, 460 skipped, 666 warnings in 3847.81s", (4698, 29, 460)),
        ("70 failed, 4051 passed, 438 skipped, 39 errors in 1758.12s", (4051, 109, 438)),
        ("1 passed, 1 error in 2s", (1, 1, 0)),
        ("Killed", (0, 0, 0)),
    ],
)
def test_counts_of_a_run(monkeypatch, last, expected):
    counts = script("matrix", monkeypatch).counts(f"FAILED a - 5 passed\n{last}\n")
    assert tuple(counts.values()) == expected


def test_page_shows_the_results(monkeypatch):
    matrix = script("matrix", monkeypatch)
    assert matrix.page_with_table() == matrix.PAGE.read_text()
    assert {result["row"] for result in matrix.read_results()} >= set(matrix.LIBRARIES)


def test_unknown_rows_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["matrix.py", "py309"])
    with pytest.raises(SystemExit):
        script("matrix", monkeypatch).main()
    assert "ROW must be among py310-torch2.1, " in capsys.readouterr().err
