"""Build mmcv's compiled ops from its source archive and install them.

The sources are unpacked into a work folder and compiled in place, so that an
interrupted build resumes where it stopped. Does nothing if the current
environment already has a suitable mmcv. Run by ``make``; by hand::

    python .dev/install_mmcv.py --version 2.1.0 --work-dir build/mmcv
    python .dev/install_mmcv.py --distribution onedl-mmcv --version 2.3.6 --work-dir build/mmcv
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ops.build import cuda_toolkit

#: Supported versions (from, below) of each distribution: mmcv itself and its maintained fork.
FITTING = {"mmcv": ("2.0.1", "2.2"), "onedl-mmcv": ("2.3.6", "2.4")}
CHECK = """
import mmcv, mmcv.ops
from packaging.version import Version
assert Version("{}") <= Version(mmcv.__version__) < Version("{}"), mmcv.__version__
print(mmcv.__version__)
"""
PROGRESS = re.compile(r"^\[(\d+)/(\d+)\] ")
PIP = [sys.executable, "-m", "pip"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--distribution", choices=FITTING, default="mmcv", help="default: mmcv")
    parser.add_argument("--version", required=True, help="version to build, e.g. 2.1.0")
    parser.add_argument("--work-dir", type=Path, required=True, help="folder for sources and log")
    args = parser.parse_args()

    name = args.distribution
    check = CHECK.format(*FITTING[name])
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    if found.returncode == 0:
        print(f"{name} {found.stdout.strip()} with its compiled ops is already installed")
        return 0

    source = fetch(name, args.version, args.work_dir)
    env, flavour = build_environment()
    print(
        f"compiling {name} {args.version} {flavour}, {env['MAX_JOBS']} jobs at a time: the\n"
        "longest step, 8 to 16 minutes on 2 cores. If interrupted, it resumes on the next run.",
        flush=True,
    )
    wheel = build(source, env, args.work_dir / "build.log")
    subprocess.run([*PIP, "install", "--quiet", str(wheel)], check=True)
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(args.work_dir)
    return 0


def fetch(distribution: str, version: str, work_dir: Path) -> Path:
    """Download, unpack and mend the source archive, unless that was done before."""
    source = work_dir / f"{distribution}-{version}"
    if source.is_dir():
        return source
    unpacked = work_dir / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir(parents=True)
    options = ["--no-deps", "--no-binary", distribution, "--no-build-isolation", "--no-clean"]
    download = [*PIP, "download", *options, "--dest", str(work_dir), f"{distribution}=={version}"]
    # pip runs setup.py for its metadata, which fails before the mends; what it unpacked remains
    env = os.environ | {"TMPDIR": str(unpacked.resolve())}
    outcome = subprocess.run(download, env=env, capture_output=True, text=True)
    found = sorted(unpacked.glob("pip-download-*/*mmcv_*/setup.py"))
    if len(found) != 1:
        sys.exit(f"{outcome.stdout}{outcome.stderr}\n{distribution} {version} was not downloaded")
    mend(found[0])
    found[0].parent.rename(source)
    shutil.rmtree(unpacked)
    return source


def mend(setup: Path) -> None:
    """Change what keeps mmcv's setup.py from building beside new releases.

    The flag for C++17 goes, because torch adds the one that its headers need (C++20 since 2.14).
    From Python 3.13 on, names that ``exec`` defines in a function are not in its ``locals()``.
    """
    text = setup.read_text(encoding="utf-8")
    text = re.sub(r"'-std=c\+\+\d\d'(, )?", "", text)
    text = text.replace("version_file, 'exec'))", "version_file, 'exec'), globals())")
    text = text.replace("locals()['__version__']", "globals()['__version__']")
    setup.write_text(text, encoding="utf-8")


def build_environment() -> tuple[dict[str, str], str]:
    """Return the environment variables for mmcv's build, and a description of what it builds.

    mmcv builds CUDA ops if torch sees a GPU. Without a toolkit that torch can
    use, the GPU is hidden from the build. Without a GPU, its hundred CUDA files
    are compiled only with ``FORCE_CUDA=1``.
    """
    import torch

    env = dict(os.environ)
    env.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))
    # Python's own flags turn on debug information, which doubles the build time and the size.
    env["CFLAGS"] = f"{env.get('CFLAGS', '')} -g0".strip()
    if not (torch.cuda.is_available() or env.get("FORCE_CUDA") == "1"):
        return env, "with CPU ops (torch sees no GPU)"

    toolkit, reason = cuda_toolkit()
    if toolkit is None:
        env.update(FORCE_CUDA="0", CUDA_VISIBLE_DEVICES="")
        return env, f"with CPU ops ({reason})"
    env.update(FORCE_CUDA="1", CUDA_HOME=str(toolkit))
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        env.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    # Slim toolkits lack the headers of cuBLAS and cuSPARSE; torch's dependencies include them.
    site = Path(torch.__file__).resolve().parents[1]
    headers = [str(p) for p in sorted(site.glob("nvidia/*/include"))]
    env["CPATH"] = os.pathsep.join(filter(None, [env.get("CPATH", ""), *headers]))
    return env, f"with CPU and CUDA ops (toolkit {toolkit})"


def build(source: Path, env: dict[str, str], log: Path) -> Path:
    """Compile, printing the progress, and return the path of the wheel."""
    command = [sys.executable, "setup.py", "--quiet", "bdist_wheel"]
    with log.open("w") as log_file:
        process = subprocess.Popen(
            command,
            cwd=source,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        shown = 0
        for line in process.stdout:
            log_file.write(line)
            step = PROGRESS.match(line)
            # one line for each tenth of the files: readable in a terminal and in a log
            if step and int(step[1]) * 10 // int(step[2]) > shown:
                shown = int(step[1]) * 10 // int(step[2])
                print(f"  mmcv: {step[1]} of {step[2]} files compiled", flush=True)
    if process.wait() != 0:
        tail = log.read_text().splitlines()[-30:]
        sys.exit("\n".join([*tail, f"building mmcv failed; full log: {log}"]))
    (wheel,) = (source / "dist").glob("*.whl")
    return wheel


if __name__ == "__main__":
    sys.exit(main())
