"""The backend ``nvrtc`` without a GPU.

NVRTC really compiles every kernel; what it made is "loaded" by a stand-in for the driver, which
runs the emulated kernel of that name on the host's memory.
"""

import locale
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cuda_on_cpu.standin import STREAM, NoCompiler, StandIn, planner_sources, scan_1d, scan_2d
from mmvssm import ops
from mmvssm.ops.nvrtc import programs, scans, sources
from mmvssm.ops.nvrtc.compiler import Compiler, NvrtcError, find_compiler, library_files
from mmvssm.ops.nvrtc.plans import planner_name

SCAN, SCAN_BACKWARD = (scans.IMPLEMENTATIONS[f"selective_scan{b}"] for b in ("", "_backward"))
SCAN_2D, SCAN_2D_BACKWARD = (
    scans.IMPLEMENTATIONS[f"selective_scan_2d{b}"] for b in ("", "_backward")
)
needs_nvrtc = pytest.mark.skipif(torch.version.cuda is None, reason="torch is without CUDA")
FORMS = (("1d", scan_1d), ("2d", scan_2d))
ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "cuda_on_cpu.standin.plugin"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def fresh_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MMVSSM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def device(standin_folder, home):
    """The stand-in without NVRTC."""
    return StandIn(standin_folder, NoCompiler())


def both_passes(device, form, arguments):
    """Results of the forward and of the backward op, for a gradient of ones."""
    if form == "1d":
        y, _, states = outputs = SCAN(device, *arguments, None, True)
        dy = torch.ones_like(y)
        return outputs, SCAN_BACKWARD(device, dy, *arguments[:7], states, arguments[7])
    values = list(arguments.values())
    y, states = outputs = SCAN_2D(device, *values, None, True)
    gradients = SCAN_2D_BACKWARD(device, torch.ones_like(y), *values[:8], states, values[9])
    return outputs, gradients


def expected(form, arguments):
    """Return the same results from the float64 definition and autograd."""
    if form == "1d":
        names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
        leaves = {n: t.double().requires_grad_() for n, t in zip(names, arguments)}
        y, last_state = ops.selective_scan_reference(**leaves, delta_softplus=True)
        outputs = [y, last_state]
    else:
        names = ("x", "x_dbl", "A", "dt_weight", "dt_bias", "D")
        leaves = {n: arguments[n].double().requires_grad_() for n in names}
        y = ops.selective_scan_2d_reference(
            **leaves,
            routes=arguments["routes"],
            out_routes=arguments["out_routes"],
            num_out=arguments["num_out"],
            merge="sum" if arguments["merge"] else "none",
        )
        outputs = [y]
    return outputs, torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y))


def assert_close(got, want, bound):
    for value, exact in zip(got, want):
        error = (value.double() - exact).norm() / exact.norm()
        assert error < bound, float(error)


def kernels_of(standin_folder, states=(1,), dtypes=(torch.float32,)):
    """C++ expressions of all kernels that calls launch, with the program that holds them.

    Sequences long enough to be cut into chunks, and routes with holes and repeats; and channels in
    parts, whose sums some kernels take by fours.
    """
    device = StandIn(standin_folder, NoCompiler())
    found = {}

    def note(source, kernel, entry=device._entry):
        found.setdefault(kernel, source)
        return entry(source, kernel)

    device._entry = note
    table = torch.tensor([[0, 5, -1, 5], [3, -1, 2, 1], [0, 1, 2, 3], [3, 3, 3, 3]]).int()
    for dtype in dtypes:
        for d_state in states:
            sizes = dict(batch=1, d_state=d_state, dtype=dtype)
            for length in (300, 301):
                both_passes(device, "1d", scan_1d(length=length, channels=200, **sizes))
            both_passes(device, "2d", scan_2d(side=17, **sizes))
            for channels in (5, 8):
                holes = dict(side=3, channels=channels, routes=table, out_routes=table)
                both_passes(device, "2d", scan_2d(**holes, **sizes))
    return [(source, kernel) for kernel, source in found.items()]


def compile_all(compiler, kernels, architectures):
    """Compile, two at a time; each entry must be visible to the driver."""

    def run(job):
        (source, kernel), architecture = job
        name, code = compiler.compile(source, compiler.target(architecture), kernel)
        assert code[:4] == b"\x7fELF"
        assert name.encode() in code
        return name, code

    jobs = [(kernel, a) for kernel in kernels for a in architectures if a in compiler.architectures]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, jobs))


@needs_nvrtc
def test_every_kernel_compiles(standin_folder, home, tmp_path):
    """One instantiation of each, for every architecture; the planners for one."""
    kernels = kernels_of(standin_folder)
    templates = {
        re.search(r"(\w+)<", kernel[1])[1]: kernel for kernel in kernels if "<" in kernel[1]
    }
    text = (sources.FOLDER / "cuda" / "scan_host.cpp").read_text()
    assert set(templates) == set(re.findall(r'"(\w+_kernel)"', text))
    planners = [k for k in kernels if "plan_" in k[1]]
    assert len(planners) == 4
    compile_all(find_compiler(), planners, [75])
    results = compile_all(find_compiler(), templates.values(), ARCHITECTURES)
    # An entry that is local to its file cannot be loaded by name.
    name, code = results[-1]
    (tmp_path / "kernel.cubin").write_bytes(code)
    symbols = subprocess.run(
        ["readelf", "-sW", tmp_path / "kernel.cubin"], capture_output=True, text=True
    ).stdout
    assert re.search(rf"FUNC\s+(GLOBAL|WEAK) .*\b{name}$", symbols, re.MULTILINE), symbols


@needs_nvrtc
@pytest.mark.slow
def test_every_instantiation_compiles(standin_folder, home):
    kernels = kernels_of(standin_folder, states=(1, 3, 7, 16, 20), dtypes=DTYPES)
    compile_all(find_compiler(), kernels, ARCHITECTURES)


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize(
    "package", ["nvidia-cuda-nvrtc-cu12==12.4.127", "nvidia-cuda-nvrtc-cu11==11.8.89"]
)
def test_older_nvrtc_compiles_the_kernels(package, standin_folder, home, tmp_path):
    """Compilers of torch's wheels for CUDA 12 and 11, which this test downloads."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", tmp_path, package]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{package} cannot be downloaded: {done.stderr.splitlines()[-1]}")
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    (file,) = tmp_path.glob("nvidia/cuda_nvrtc/lib/libnvrtc.so.*")
    compiler = Compiler(file)
    assert package.endswith(f"=={compiler.version}.{package.split('.')[-1]}")
    kernels = kernels_of(standin_folder, states=(1, 16), dtypes=DTYPES)
    assert compile_all(compiler, kernels, ARCHITECTURES)


@needs_nvrtc
@pytest.mark.parametrize(("form", "problem"), FORMS)
def test_scan_through_nvrtc_and_the_driver(form, problem, standin_folder, home, capfd, monkeypatch):
    """Forward and backward agree with the definition; the second call compiles nothing."""
    device = StandIn(standin_folder)
    arguments = problem(d_state=1)
    outputs, gradients = both_passes(device, form, arguments)
    want, want_gradients = expected(form, arguments)
    assert_close(outputs, want, 1e-6)
    assert_close(gradients, want_gradients, 3e-6)

    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1, said
    assert re.match(
        r"mmvssm: NVRTC \d+\.\d+ compiles .* for sm_90 when they are first used, .*home/kernels$",
        said[0],
    )
    first = device.log()
    launches = [words for words in first if words[0] == "launch"]
    assert {words[4] for words in launches} == {str(STREAM)}
    assert [words[5] for words in launches if "plan" in words[5]] == [
        f"plan_scan_{form}_forward",
        f"plan_scan_{form}_backward",
    ]
    both_passes(device, form, arguments)
    assert device.log() == [words for words in first if "plan_" not in words[-1]]
    assert not capfd.readouterr().err
    files = sorted((home / "kernels").glob("*.bin"))
    other = StandIn(standin_folder)
    monkeypatch.setattr(Compiler, "compile", None)  # not called: the files are found
    both_passes(other, form, arguments)
    assert sorted((home / "kernels").glob("*.bin")) == files


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d_state", [1, 5, 20])
def test_addresses_and_sizes_of_routes(device, dtype, d_state):
    """Repeats, holes and rows written other than those read; then a call at other addresses."""
    table = torch.tensor([[0, 5, -1, 5, 11], [3, -1, 2, 1, 0]] * 2).int()
    out = torch.tensor([[0, 1, 2, -1, 3], [4, 0, 0, 1, 2]] * 2).int()
    for _ in range(2):
        arguments = scan_2d(
            batch=3, side=4, d_state=d_state, dtype=dtype, routes=table, out_routes=out, num_out=6
        )
        got = both_passes(device, "2d", arguments)
        for values, want in zip(got, expected("2d", arguments)):
            assert_close(values, want, {torch.float32: 3e-6, torch.float16: 1e-3}.get(dtype, 8e-3))
    planned = [words for words in device.log() if "plan_" in words[-1]]
    assert len(planned) == 2


def test_misaligned_input_has_its_own_plan(device):
    arguments = scan_2d()
    aligned = SCAN_2D(device, *arguments.values(), None, False)[0]
    x_dbl = arguments["x_dbl"]
    shifted = torch.empty(x_dbl.numel() + 1)[1:].view_as(x_dbl).copy_(x_dbl)
    y = SCAN_2D(device, *{**arguments, "x_dbl": shifted}.values(), None, False)[0]
    assert torch.equal(y, aligned)
    assert len([words for words in device.log() if "plan_" in words[-1]]) == 2


def test_empty_batch_starts_nothing(device):
    for form, problem in FORMS:
        outputs, gradients = both_passes(device, form, problem(batch=0))
        assert outputs[0].numel() == 0
        assert all(not g.any() for g in gradients)
    assert device.log() == []


def test_too_large_a_rank_is_refused(device):
    with pytest.raises(
        ValueError, match=r"than a block of this device has .* N = 3 and this step rank R"
    ):
        SCAN_2D(device, *scan_2d(side=2, dt_rank=5000).values(), None, False)


def test_much_shared_memory_is_asked_for(device):
    """A block may have more than 48 KB only if that was set for its kernel."""
    SCAN_2D(device, *scan_2d(side=2, dt_rank=100).values(), None, False)
    (launch,) = [words for words in device.log() if "route_forward_kernel" in words[-1]]
    assert int(launch[3]) > 48 * 1024


@pytest.mark.parametrize(("step", "dt_rank"), [("allow_shared_memory", 90), ("load", 100)])
def test_threads_share_the_kernels_of_a_device(step, dt_rank, device, monkeypatch):
    """Another thread's call of so large a rank comes after a step of the preparation of a call."""
    prepare, launch = getattr(device.driver, step), device.driver.launch
    one_at_a_time = threading.Lock()  # which the stand-in needs
    mine, others = (list(scan_2d(side=2, dt_rank=rank).values()) for rank in (100, dt_rank))
    other = threading.Thread(target=SCAN_2D, args=(device, *others, None, False))

    def interrupted(*arguments):
        result = prepare(*arguments)
        if not other.ident and "plan_" not in str(arguments[1]):
            other.start()
            other.join(timeout=1)  # or it waits for this thread
        return result

    def launch_alone(*arguments):
        with one_at_a_time:
            launch(*arguments)

    monkeypatch.setattr(device.driver, step, interrupted)
    monkeypatch.setattr(device.driver, "launch", launch_alone)
    SCAN_2D(device, *mine, None, False)
    other.join()
    launches = [words for words in device.log() if "route_forward_kernel" in words[-1]]
    assert len(launches) == 2 and all(int(words[3]) > 48 * 1024 for words in launches)


def test_float64_and_counts_beyond_32_bits_are_refused(device):
    with pytest.raises(TypeError, match="u: the CUDA scan takes float32, float16 or bfloat16"):
        SCAN(device, *(t.double() for t in scan_1d()[:-1]), True, None, False)
    arguments = scan_2d(side=2)
    large = torch.empty(1, dtype=torch.float32).expand(2, 2**22, 600)
    with pytest.raises(ValueError, match="must be contiguous"):
        SCAN_2D(device, *{**arguments, "x": large}.values(), None, False)
    with pytest.raises(ValueError, match="at most 2147482623 elements of the output in an image"):
        SCAN_2D(device, *{**arguments, "num_out": 2**30}.values(), None, False)


def test_new_sizes_are_refused_while_a_graph_is_captured(device):
    arguments = scan_2d(side=3)
    SCAN_2D(device, *arguments.values(), None, False)
    device.capturing = True
    SCAN_2D(device, *arguments.values(), None, False)
    with pytest.raises(RuntimeError, match="run the call once before the capture"):
        SCAN_2D(device, *scan_2d(side=4).values(), None, False)


def compile_slowly(log):
    class Slow(NoCompiler):
        def compile(self, source, target, kernel):
            time.sleep(0.3)
            with open(log, "a") as file:
                file.write(f"{kernel}\n")
            return super().compile(source, target, kernel)

    name, code = programs.compiled(Slow(), "source", "sm_90", "kernel<float>")
    os._exit(0 if (name, code) == ("kernel<float>", b"\x7fELFkernel<float>") else 1)


def test_eight_processes_compile_once(home, tmp_path):
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    processes = [context.Process(target=compile_slowly, args=(log,)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    assert log.read_text() == "kernel<float>\n"


def test_kept_kernels_are_of_their_sources(home, monkeypatch):
    def files():
        return {path.name for path in (home / "kernels").glob("*.bin")}

    compiler = NoCompiler()
    seen = set()
    for source, target, kernel in (("a", "sm_90", "k"), ("b", "sm_90", "k"), ("a", "sm_80", "k")):
        programs.compiled(compiler, source, target, kernel)
        assert len(files() - seen) == 1
        seen = files()
    compiler.version = "0.1"
    programs.compiled(compiler, "a", "sm_90", "k")
    texts = {**sources.headers(), "cuda/scan_math.cuh": "other"}
    monkeypatch.setattr(programs, "headers", lambda: texts)
    programs.compiled(compiler, "a", "sm_90", "k")
    assert len(files()) == len(seen) + 2


@needs_nvrtc
def test_text_is_read_as_before_compiling():
    """NVRTC of CUDA 12.1 changes the thread's locale, in which files are read as ASCII."""
    encoding = locale.getpreferredencoding(False)
    kernel = "template <int N> __global__ void fill(float* x) { x[0] = N; }"
    assert "fill" in find_compiler().compile(kernel, "sm_80", "fill<1>")[0]
    assert locale.getpreferredencoding(False) == encoding


def test_unwritable_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMVSSM_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"cannot write .*kernels to .*file/kernels'.* MMVSSM_HOME"):
        programs.compiled(NoCompiler(), "source", "sm_90", "kernel")


@needs_nvrtc
def test_target_of_a_gpu():
    compiler = find_compiler()
    assert compiler.target(90) == "sm_90"
    assert compiler.target(99) == "sm_90"  # machine code runs on later ones of its major version
    assert compiler.target(999) == f"compute_{compiler.architectures[-1]}"
    with pytest.raises(NvrtcError, match=r"compiles for sm_\d+ and newer, and this GPU is sm_35"):
        compiler.target(35)


@needs_nvrtc
def test_code_for_a_newer_gpu_is_ptx():
    source, kernel = '#include "cuda/collect.cuh"', "mmvssm::cuda::sum_slots_kernel<float, 4, 1>"
    name, code = find_compiler().compile(source, "compute_90", kernel)
    assert code.startswith(b"//") and code.endswith(b"\0")
    assert f".entry {name}(".encode() in code


@needs_nvrtc
def test_compiler_is_quoted():
    with pytest.raises(NvrtcError, match=r'cannot compile absent:(.|\n)*"absent" is undefined'):
        find_compiler().compile("", "sm_90", "absent")


@pytest.mark.parametrize(
    ("cuda", "file"),
    [
        ("13.0", "site/nvidia/cu13/lib/libnvrtc.so.13"),
        ("12.4", "site/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"),
        ("11.8", "site/nvidia/cuda_nvrtc/lib/libnvrtc-672ee683.so.11.2"),
        ("12.1", "toolkit/lib64/libnvrtc.so.12"),
    ],
)
def test_library_is_found_as_torch_finds_it(cuda, file, tmp_path, monkeypatch):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    for name in (path.name, "libnvrtc-builtins.so.13.0", "libnvrtc.alt.so.13"):
        (path.parent / name).touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    bare = "libnvrtc.so.11.2" if cuda == "11.8" else f"libnvrtc.so.{cuda[:2]}"
    assert library_files(cuda) == [path, Path(bare)]


def test_planner_names_are_the_scans(home):
    assert {planner_name(n.removeprefix("plan_")) for n in planner_sources()} == {
        f"mmvssm::cuda::plan_scan_{form}_{way}"
        for form in ("1d", "2d")
        for way in ("forward", "backward")
    }


@pytest.mark.skipif("cpu" not in ops.built_devices(), reason="no compiled kernels")
@pytest.mark.parametrize(
    "choice",
    [
        "not torch and (half_input_float_state or autocast or checkpoint or without_graph_breaks"
        " or good_arguments or strided or (opcheck and True))",
        pytest.param("not torch", marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_tests_of_the_registered_ops(choice, standin_folder, home):
    """Run the CPU kernels' tests on this path: autograd, autocast, compile, errors."""
    names = ("selective_scan", "scan_2d", "library", "errors", "route_facts")
    tests = [ROOT / "tests" / "ops" / f"test_{name}.py" for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, "-k", choice, *tests],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:]
    (calls,) = re.findall("through the stand-in: (.*)", done.stdout)
    assert all(int(number) > 0 for number in re.findall(r"\d+", calls.replace("2d", ""))), calls
