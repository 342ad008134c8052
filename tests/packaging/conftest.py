"""Clean environments with mmvssm installed, apart from the repository.

They see the libraries of the running environment but not its mmvssm. The ops are left out: what
is built does not matter here; what is packed, and how it is found, does.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["configs", "mmvssm", "ops", "requirements", "tools"]
FILES = ["LICENSE", "MANIFEST.in", "README.md", "model-index.yml", "pyproject.toml", "setup.py"]
LIBRARIES = ["pip", "setuptools", "torch", "mmengine", "mmcv", "mmpretrain", "mmdet", "mmseg"]


def run(*command, cwd, **env):
    """Run a command that does not see the repository; return the finished process."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
    )


def output(*command, cwd, **env):
    """Return the output of a command, which must succeed."""
    done = run(*command, cwd=cwd, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def new_environment(folder):
    """Return the interpreter of a new environment with the libraries of the running one."""
    output(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    origins = (Path(importlib.util.find_spec(name).origin) for name in LIBRARIES)
    folders = dict.fromkeys(str(origin.parents[1]) for origin in origins)
    lines = [*folders]
    if any((Path(name) / "_distutils_hack").is_dir() for name in folders):
        # as setuptools installs it: MMEngine imports distutils, which Python 3.12 no longer has
        lines.append("import _distutils_hack; _distutils_hack.add_shim()")
    (site / "libraries.pth").write_text("\n".join(lines) + "\n")
    return folder / "bin" / "python"


@pytest.fixture(scope="session", name="run")
def run_fixture():
    return run


@pytest.fixture(scope="session", name="output")
def output_fixture():
    return output


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A copy of the files of a release, so that building leaves no trace in the repository."""
    copy = tmp_path_factory.mktemp("sources")
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="session")
def wheel(sources, tmp_path_factory):
    """A wheel built from the source archive, as for a package index."""
    folder = tmp_path_factory.mktemp("dist")
    env = {"MMVSSM_WITH_OPS": "0"}
    output(sys.executable, "setup.py", "-q", "sdist", "-d", folder, cwd=sources, **env)
    (archive,) = folder.glob("mmvssm-*.tar.gz")
    options = ["-q", "--no-build-isolation", "--no-deps", "-w", folder]
    output(sys.executable, "-m", "pip", "wheel", *options, archive, cwd=folder, **env)
    (wheel,) = folder.glob("mmvssm-*.whl")
    return wheel


def install(name, arguments, tmp_path_factory):
    """Return the interpreter of a new environment in which pip installed ``arguments``."""
    folder = tmp_path_factory.mktemp(name)
    python = new_environment(folder / "venv")
    options = ["-q", "--no-build-isolation", "--no-deps", "--ignore-installed"]
    pip = [python, "-m", "pip", "install", *options, *arguments]
    output(*pip, cwd=folder, MMVSSM_WITH_OPS="0")
    return python


@pytest.fixture(scope="session")
def wheel_python(wheel, tmp_path_factory):
    """The interpreter of an environment with the wheel."""
    return install("wheel", [wheel], tmp_path_factory)


@pytest.fixture(scope="session")
def editable_python(sources, tmp_path_factory):
    """The interpreter of an environment with an editable install."""
    return install("editable", ["--editable", sources], tmp_path_factory)


@pytest.fixture(scope="session", params=["wheel", "editable"])
def python(request):
    """Either of the two interpreters."""
    return request.getfixturevalue(f"{request.param}_python")
