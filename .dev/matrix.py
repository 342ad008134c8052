"""Run the default tests and the demo in several environments, and record the results.

Run by ``make matrix``; to run some rows: ``make matrix ROWS='py310-torch2.1 forks'``. Each row has
a clean clone of the last commit and an environment in build/matrix, where `make setup` installs the
versions of the row. A row takes half an hour on two cores and 10 GB of disk; if interrupted, the
next run repeats the interrupted step. The last rows build a network of another OpenMMLab library
each, next to the packages of the running environment. Results go to docs/start/environments.json
and into the tables of docs/start/environments.md. The exit status is 1 if a test or a step of a row
failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from other_libraries import LIBRARIES  # noqa: E402

from mmvssm.files import atomic_write  # noqa: E402

PAGE = ROOT / "docs" / "start" / "environments.md"
RESULTS = PAGE.with_suffix(".json")
VERSIONS = """
import importlib.metadata, json, platform
import cv2, mmcv, mmdet, mmengine, mmpretrain, mmseg, numpy, torch, torchvision
import mmvssm
modules = dict(torch=torch, torchvision=torchvision, mmcv=mmcv, mmengine=mmengine, numpy=numpy,
               opencv=cv2, mmpretrain=mmpretrain, mmdet=mmdet, mmseg=mmseg)
versions = dict(python=platform.python_version())
versions.update((name, module.__version__) for name, module in modules.items())
print(json.dumps(versions))
"""


@dataclass(frozen=True)
class Row:
    """Versions of one environment.

    Args:
        name: Name of the row and of its folder.
        python: Version of Python, such as ``3.11``.
        torch: Version of torch.
        torchvision: Version of torchvision for this torch.
        mmcv: Version of mmcv, or of onedl-mmcv with ``forks``.
        forks: Whether to install the maintained forks of the OpenMMLab libraries.
        constraints: Pip constraints in addition to the project's own requirements.
    """

    name: str
    python: str
    torch: str
    torchvision: str
    mmcv: str = "2.1.0"
    forks: bool = False
    constraints: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Folder of the row's clone, environment and logs."""
        return ROOT / "build" / "matrix" / self.name


NUMPY_1 = ("numpy<2", "opencv-python<4.12", "opencv-python-headless<4.12")
ROWS = [
    Row("py310-torch2.1", "3.10", "2.1.2", "0.16.2", mmcv="2.0.1"),
    Row("py311-torch2.4", "3.11", "2.4.1", "0.19.1", constraints=NUMPY_1),
    Row("py312-torch2.6", "3.12", "2.6.0", "0.21.0"),
    Row("py311-torch2.11", "3.11", "2.11.0", "0.26.0"),
    Row("py313-torch2.14", "3.13", "2.14.1", "0.29.1"),
    Row("forks", "3.12", "2.14.1", "0.29.1", mmcv="2.3.6", forks=True),
]


def main() -> int:
    rows = {row.name: row for row in ROWS} | LIBRARIES
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(rows)}; default: all")
    parser.add_argument("--table", action="store_true", help="only rewrite the table of the page")
    args = parser.parse_args()
    unknown = sorted(set(args.rows) - set(rows))
    if unknown:
        parser.error(f"ROW must be among {', '.join(rows)}, got {', '.join(unknown)}")
    if args.table:
        write_page()
        return 0
    good = True
    for name in args.rows or rows:
        result = run_library(name) if name in LIBRARIES else run(rows[name])
        note(result)
        write_page()
        good &= not result["failed_step"] and not result.get("tests", {}).get("failed")
    return not good


def run(row: Row) -> dict:
    """Run the steps of a row and return its result."""
    commit = git("rev-parse", "--short", "HEAD")
    say(f"{row.name}: python {row.python}, torch {row.torch}, commit {commit}")
    checkout = row.folder / "checkout"
    if not checkout.is_dir():
        row.folder.mkdir(parents=True, exist_ok=True)
        git("clone", "--quiet", str(ROOT), str(checkout))
    git("-C", str(checkout), "fetch", "--quiet", "origin")
    git("-C", str(checkout), "checkout", "--quiet", "--detach", git("rev-parse", "HEAD"))
    python = row.folder / "env" / "bin" / "python"
    constraints = row.folder / "constraints.txt"
    constraints.write_text("".join(f"{line}\n" for line in row.constraints))
    setup = [
        "make",
        "setup",
        f"PYTHON={python}",
        f"TORCH=torch=={row.torch} torchvision=={row.torchvision}",
        f"MMCV={row.mmcv}",
        *(["FORKS=1"] if row.forks else []),
    ]
    tests = [python, "-m", "pytest", "-q", "-n", "auto", "--maxprocesses", "8"]
    tests += ["--dist", "loadgroup", "-p", "no:cacheprovider"]
    steps = {
        "environment": [f"python{row.python}", "-m", "venv", row.folder / "env"],
        "setup": setup,
        "tests": tests,
        "demo": ["make", "demo", f"PYTHON={python}"],
    }
    result = {"row": row.name, "commit": commit, "date": time.strftime("%Y-%m-%d")}
    result |= {"forks": row.forks, "failed_step": None, "minutes": {}}
    result["tests"] = dict.fromkeys(("passed", "failed", "skipped"), 0)
    for step, command in steps.items():
        if step == "environment" and python.exists():
            continue
        log, started = row.folder / f"{step}.log", time.monotonic()
        env = os.environ | {"PIP_CONSTRAINT": str(constraints)}
        print(f"  {step} (log: {log.relative_to(ROOT)})", flush=True)
        with log.open("w") as file:
            status = subprocess.run(
                command, cwd=checkout, env=env, stdout=file, stderr=subprocess.STDOUT
            ).returncode
        result["minutes"][step] = round((time.monotonic() - started) / 60, 1)
        text = log.read_text(errors="replace")
        if step == "setup" and status == 0:
            said = subprocess.check_output([python, "-W", "ignore", "-c", VERSIONS], cwd=checkout)
            result["versions"] = json.loads(said.splitlines()[-1])
        if step == "tests":
            result["tests"] |= counts(text)
        if step == "demo" and status == 0:
            result["demo"] = re.search(r"([\d.]+) on images", text)[1]
        # failed tests are a result, so the demo still runs after them
        if status and not (step == "tests" and result["tests"]["failed"]):
            result["failed_step"] = step
            print(*text.splitlines()[-15:], sep="\n    ")
            break
    say(f"{row.name}: {described(result)}")
    return result


def run_library(name: str) -> dict:
    """Build and run a network of a further OpenMMLab library; return the result."""
    folder = ROOT / "build" / "matrix" / name
    folder.mkdir(parents=True, exist_ok=True)
    say(f"{name}: beside the packages of {sys.executable}")
    log = folder / "library.log"
    command = [sys.executable, ROOT / ".dev" / "other_libraries.py", name, "--folder", folder]
    with log.open("w") as file:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, text=True)
    result = {"row": name, "commit": git("rev-parse", "--short", "HEAD")}
    result |= {"date": time.strftime("%Y-%m-%d"), "failed_step": None}
    if done.returncode:
        result["failed_step"] = "library"
        print(*log.read_text(errors="replace").splitlines()[-15:], sep="\n    ")
    else:
        result |= json.loads(done.stdout.splitlines()[-1])
    say(f"{name}: {result['failed_step'] or result['shapes']}")
    return result


def counts(output: str) -> dict[str, int]:
    """Return the numbers of passed, failed and skipped tests from the last line of pytest."""
    last = output.strip().splitlines()[-1] if output.strip() else ""
    found = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last)}
    return {
        "passed": found.get("passed", 0),
        "failed": found.get("failed", 0) + found.get("error", 0) + found.get("errors", 0),
        "skipped": found.get("skipped", 0),
    }


def described(result: dict) -> str:
    """Return a short description of how a row went."""
    if result["failed_step"]:
        return f"step {result['failed_step']!r} failed"
    tests = result["tests"]
    return ", ".join(f"{number} {word}" for word, number in tests.items())


def note(result: dict) -> None:
    """Store the result of a row, replacing its previous one."""
    kept = [old for old in read_results() if old["row"] != result["row"]]
    order = [row.name for row in ROWS] + list(LIBRARIES)
    kept = sorted([*kept, result], key=lambda entry: order.index(entry["row"]))
    text = json.dumps(kept, indent=1) + "\n"
    atomic_write(RESULTS, lambda part: part.write_text(text))


def read_results() -> list[dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def write_page() -> None:
    """Write the tables of the page anew, so that it never differs from the results."""
    text = page_with_table()
    atomic_write(PAGE, lambda part: part.write_text(text))


def page_with_table() -> str:
    """Return the page with its tables made from the results."""
    page, results = PAGE.read_text(), read_results()
    environments = [result for result in results if result["row"] not in LIBRARIES]
    libraries = [result for result in results if result["row"] in LIBRARIES]
    for mark, lines in [
        ("rows", table_lines(environments)),
        ("libraries", library_lines(libraries)),
    ]:
        before, _, rest = page.partition(f"<!-- {mark} -->\n")
        _, _, after = rest.partition(f"<!-- end of {mark} -->\n")
        table = "\n".join(lines)
        page = f"{before}<!-- {mark} -->\n{table}\n<!-- end of {mark} -->\n{after}"
    return page


def library_lines(results: Iterable[dict]) -> list[str]:
    """Return the lines of the table of other libraries in Markdown."""
    lines = ["| Row | Version | Config | Outputs | Commit |", "|---|---|---|---|---|"]
    for result in results:
        shapes = ", ".join("x".join(map(str, shape)) for shape in result.get("shapes", ()))
        cells = [
            f"`{result['row']}`",
            result.get("version", ""),
            f"`{Path(LIBRARIES[result['row']].config).stem}`",
            shapes or "failed",
            f"{result['commit']}, {result['date']}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def table_lines(results: Iterable[dict]) -> list[str]:
    """Return the lines of the table of environments in Markdown."""
    lines = [
        "| Row | Python | torch | mmcv | numpy | OpenCV | Tests: passed, failed, skipped "
        "| Demo: top 1 | Commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        versions, tests = result.get("versions", {}), result["tests"]
        outcome = f"{tests['passed']}, {tests['failed']}, {tests['skipped']}"
        if result["failed_step"]:
            outcome = described(result)
        cells = [
            f"`{result['row']}`",
            *(versions.get(name, "") for name in ("python", "torch", "mmcv", "numpy", "opencv")),
            outcome,
            result.get("demo", ""),
            f"{result['commit']}, {result['date']}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def git(*words: str) -> str:
    return subprocess.check_output(["git", *words], cwd=ROOT, text=True).strip()


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
