"""The native build's search for a CUDA toolkit, with fake compilers."""

import importlib.util
import stat
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
OLD = "sm_35 sm_75 sm_80 sm_86 sm_89 sm_90"  # as of CUDA 11.8


@pytest.fixture
def build(monkeypatch, tmp_path):
    """A fresh ``ops/build.py`` on a machine without any toolkit, with torch for CUDA 12.4."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "ops" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("CUDA_HOME", "CUDA_PATH", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(module, "USUAL_TOOLKIT", tmp_path / "usual")
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return module


def install(root, release="12.4", top=True, codes=OLD):
    """Install a fake ``nvcc`` in ``root``."""
    nvcc = root / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    said = {"-V": f"Cuda compilation tools, release {release}, V{release}.1"}
    said["--dryrun"] = f"#$ TOP={root}" if top else "#$ _SPACE_="
    said["--list-gpu-code"] = codes.replace(" ", "\n")
    cases = "\n".join(f"{flag}) echo '{words}';;" for flag, words in said.items())
    nvcc.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}\nesac\n')
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IEXEC)
    return nvcc


@pytest.mark.parametrize("place", ["CUDA_HOME", "CUDA_PATH", "path", "usual", "debian"])
def test_toolkit_is_found_where_torch_finds_it(build, place, tmp_path, monkeypatch):
    root = tmp_path / place
    nvcc = install(root, top=place != "debian")
    if place.startswith("CUDA"):
        monkeypatch.setenv(place, str(root))
    elif place != "usual":
        monkeypatch.setattr(build.shutil, "which", lambda name: str(nvcc))
    assert build.cuda_toolkit() == (root, "")


def test_reasons_for_no_toolkit(build, tmp_path, monkeypatch):
    assert build.cuda_toolkit() == (
        None,
        f"nvcc is not on the path or in {tmp_path / 'usual' / 'bin'}",
    )
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    assert build.cuda_toolkit() == (None, f"{tmp_path} has no bin/nvcc")
    monkeypatch.delenv("CUDA_PATH")
    nvcc = install(tmp_path / "usual", release="13.0")
    reason = "nvcc is of CUDA 13 and torch of CUDA 12.4"
    assert build.cuda_toolkit() == (None, reason)
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(RuntimeError, match=f"FORCE_CUDA=1, but {reason}"):
        build.extensions()
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    assert build.cuda_toolkit() == (None, f"{nvcc} does not run")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert build.cuda_toolkit() == (None, "torch is a build without CUDA")


@pytest.mark.parametrize(
    ("codes", "gpus", "built", "note"),
    [
        (f"{OLD} sm_100 sm_120", [], "7.5 8.0 8.6 8.9 9.0 10.0 12.0+PTX", ""),
        (OLD, [], "7.5 8.0 8.6 8.9 9.0+PTX", "not for 10.0 12.0: nvcc in .* does not know them"),
        (OLD, [(8, 6), (9, 0)], "8.6 9.0", ""),
        (OLD, [(9, 0), (12, 0)], "9.0+PTX", "not for 12.0: "),
        (OLD, [(12, 0)], "9.0+PTX", "not for 12.0: "),
        ("sm_75 sm_80", [(7, 0)], "", "not for 7.0: nvcc in .* does not know"),
    ],
    ids=str,
)
def test_architectures(build, codes, gpus, built, note, tmp_path, monkeypatch):
    install(tmp_path / "usual", codes=codes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: gpus[i])
    if not gpus:
        monkeypatch.setenv("FORCE_CUDA", "1")
    architectures, said = build._prepare_cuda()
    assert architectures == built
    assert build.re.match(note, said) if note else said == ""


def test_flags_and_the_last_words(build):
    pytest.importorskip("mmcv")
    (extension,) = build.extensions()
    words = "torch saw no GPU, and FORCE_CUDA=1 was not set"
    assert ("MMVSSM_BUILD_NOTE", f'"{words}"') in extension.define_macros
    (report,) = build.REPORT
    assert report == f"mmvssm: native ops for cpu, and none for cuda: {words}"
    assert build._flags_of("8.0 9.0+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
