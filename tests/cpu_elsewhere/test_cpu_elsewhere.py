"""The CPU kernels built by other compilers and for other processors, without torch and OpenMP.

``driver.cpp`` compares every output of a case with a float64 reference. What ran for ARM ran in an
emulator; no Mac is at hand, and nothing here says what Apple's compiler does.
"""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
#: Half-precision types for compilers without CUDA's.
SHIM = ROOT / "tests" / "cuda_on_cpu" / "shim"
KERNELS = ROOT / "ops" / "csrc"
#: Compiler, flags, and what runs the program.
MACHINES = {
    "g++": (["g++", "-fsanitize=address", "-Wno-maybe-uninitialized"], []),
    "clang++": (["clang++", "-fsanitize=address"], []),
    "aarch64": (["aarch64-linux-gnu-g++", "-static"], ["qemu-aarch64-static"]),
}

CASES = """
2d L=1 D=1 N=1 R=1
2d L=65 D=70 N=16 R=6 K=2 groups=3
2d L=130 D=33 N=1 R=3 K=4 batch=3
2d L=65 D=3 N=20 R=48 K=1
2d L=64 D=1 N=8 R=65 K=2 skip=0
2d L=130 D=3 N=16 R=6 K=2 holes=30 repeats=1 P=40
2d L=17 D=3 N=3 R=3 K=2 holes=100
2d L=65 D=3 N=5 R=6 K=2 out=1 Q=195 merge=0 holes=10
2d L=63 D=17 N=16 R=3 K=2 out=1 Q=20 repeats=1 P=100 batch=2
2d L=65 D=3 N=20 R=6 K=4 shared=1 x_per_route=1 holes=20
2d L=17 D=33 N=1 R=6 K=4 disjoint=1 P=70 shared=1 batch=2
2d L=65 D=33 N=2 R=4 K=4 facts=0
2d L=65 D=33 N=3 R=6 K=4 type=half y=float
2d L=64 D=33 N=5 R=1 K=2 type=half y=half shared=1
2d L=130 D=3 N=20 R=3 K=2 type=bfloat16 y=bfloat16 merge=0 out=1 Q=140
2d L=64 D=33 N=16 R=6 K=2 type=bfloat16 y=float x_per_route=1
2d L=65 D=33 N=3 R=9 K=4 type=double y=double batch=2 holes=10
1d L=1 D=1 N=1
1d L=130 D=33 N=20 K=1 batch=3
1d L=65 D=70 N=5 K=2 softplus=0 groups=4
1d L=130 D=3 N=1 K=4 bias=0 skip=0 softplus=0
1d L=65 D=33 N=16 K=2 type=half y=float
1d L=63 D=33 N=16 K=2 type=bfloat16 y=bfloat16
1d L=2 D=1 N=20 K=1 type=half y=half bias=0
1d L=65 D=19 N=3 K=2 type=double y=double batch=2
""".strip()


def run(*command, **options):
    options = {"capture_output": True, "text": True, "timeout": 600, **options}
    return subprocess.run([*map(str, command)], **options)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("g++", marks=pytest.mark.slow),
        pytest.param("clang++", marks=pytest.mark.slow),
        "aarch64",
    ],
)
def driver(request, tmp_path_factory):
    """Command that runs the driver on a machine, and the machine's name."""
    compiler, runner = MACHINES[request.param]
    for program in (compiler[0], *runner):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    program = tmp_path_factory.mktemp("driver") / "driver"
    folders = [f"-I{folder}" for folder in (HERE.parent, SHIM, KERNELS)]
    sources = [*KERNELS.glob("cpu/kernels_*.cpp"), KERNELS / "cpu" / "runnable_kernels.cpp"]
    flags = ["-std=c++17", "-O1", *compiler[1:], "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    built = run(compiler[0], *flags, *folders, *sources, HERE / "driver.cpp", "-o", program)
    assert built.returncode == 0, built.stderr
    return [*runner, program], request.param


def test_kernels(driver, tmp_path):
    command, machine = driver
    names = run(*command, "names").stdout.split()
    assert names[-1] == ("neon" if machine == "aarch64" else "baseline")
    (tmp_path / "cases").write_text(CASES)
    done = run(*command, tmp_path / "cases")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(CASES.splitlines()) * len(names)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_flags_of_a_platform(monkeypatch, platform):
    monkeypatch.setattr("sys.platform", platform)
    spec = importlib.util.spec_from_file_location("ops_build", ROOT / "ops" / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    compile_flags, link_flags = build.compiler_flags()
    assert not [flag for flag in compile_flags if flag.startswith(("-m", "-x"))]
    apart = compile_flags.index("-fopenmp") > 0 and "-Xpreprocessor" in compile_flags
    assert apart == (platform == "darwin")
    # torch comes with the library on a Mac: a second one would abort the process
    assert ("-fopenmp" in link_flags) == (platform == "linux")
