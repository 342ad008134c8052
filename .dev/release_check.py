"""Check that this tree can be released: its metadata, its archives and an offline install.

Run by ``make release-check``. Builds the source archive and a wheel from it, installs the wheel
offline into a clean environment that sees the libraries of the current one, and there runs the
check of the ops and a forward pass.
"""

from __future__ import annotations

import argparse
import re
import runpy
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIP = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
SMOKE = """
import mmvssm, torch
from mmvssm.models import VMamba
assert mmvssm.__version__ == {version!r}, mmvssm.__version__
assert len(mmvssm.list_models()) > 100, mmvssm.list_models()
maps = VMamba("tiny-s1l8").eval()(torch.zeros(1, 3, 64, 64))
assert [m.shape[1] for m in maps] == [96, 192, 384, 768]
print("imports, configs and a forward pass work in", mmvssm.__path__[0])
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the archives")
    args = parser.parse_args()
    version = runpy.run_path(str(ROOT / "mmvssm" / "version.py"))["__version__"]
    wrong = contradictions(version)
    if wrong:
        print(f"version {version} cannot be released:", *wrong, sep="\n  - ", file=sys.stderr)
        return 1
    wheel = build(args.out, version)
    try_offline(wheel, version)
    print(f"{version} is ready: {args.out}")
    return 0


def contradictions(version: str) -> list[str]:
    """Return what in this tree disagrees with the version, one sentence for each."""
    wrong = []
    citation = (ROOT / "CITATION.cff").read_text()
    if f"\nversion: {version}\n" not in citation:
        wrong.append(f"CITATION.cff does not say `version: {version}`")
    changelog = (ROOT / "CHANGELOG.md").read_text()
    if not re.search(
        rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE
    ):
        wrong.append(f"CHANGELOG.md has no section `## [{version}] - YYYY-MM-DD`")
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    if status.stdout:
        wrong.append(f"the working tree has uncommitted changes:\n{status.stdout.rstrip()}")
    return wrong


def build(folder: Path, version: str) -> Path:
    """Write the source archive and a wheel built from it to a folder; return the wheel."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", folder], cwd=ROOT, check=True
    )
    archive = folder / f"mmvssm-{version}.tar.gz"
    options = ["--no-build-isolation", "--no-deps", "--wheel-dir", folder]
    subprocess.run([sys.executable, *PIP, "wheel", *options, archive], check=True)
    (wheel,) = folder.glob(f"mmvssm-{version}-*.whl")
    return wheel


def try_offline(wheel: Path, version: str) -> None:
    """Install a wheel offline into a clean environment, and use it there."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder, "venv")
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        (site,) = environment.glob("lib/python*/site-packages")
        libraries = [path for path in sys.path if path.endswith("site-packages")]
        (site / "libraries.pth").write_text("\n".join(libraries) + "\n")
        options = ["--no-index", "--no-deps", "--ignore-installed"]
        subprocess.run([python, *PIP, "install", *options, wheel], check=True, cwd=folder)
        for command in (["-m", "mmvssm.ops"], ["-c", SMOKE.format(version=version)]):
            # -I: a PYTHONPATH would put this tree before the wheel
            subprocess.run([python, "-I", *command], check=True, cwd=folder)


if __name__ == "__main__":
    sys.exit(main())
