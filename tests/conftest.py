"""What all tests share: threads, seed, the rule for GPU tests, a line on the ops under test."""

import os
import resource
import signal
import sys
from functools import cache

import pytest
import torch

from mmvssm import ops


def pytest_configure():
    # Small tensors: more threads than this only wait for each other, as do processes' threads.
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, min(2, os.cpu_count() // processes)))


def pytest_itemcollected(item):
    """Keep tests that share what takes long to make in one process: programs, trainings, pages."""
    if item.path.parent.name in ("packaging", "cuda_on_cpu", "cpu_elsewhere"):
        item.add_marker(pytest.mark.xdist_group(item.path.parent.name))
    elif any(name.endswith("_checkpoint") for name in item.fixturenames):
        item.add_marker(pytest.mark.xdist_group("checkpoints"))
    elif "site" in item.fixturenames:
        item.add_marker(pytest.mark.xdist_group("site"))


def pytest_report_header():
    return "mmvssm.ops: " + ", ".join(f"{name} {value}" for name, value in ops.info().items())


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")


@pytest.fixture(autouse=True)
def seed():
    """Makes the random numbers of a test independent of the tests that ran before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def stock_readers():
    """Undoes the safe reading that tools in this process set up in MMEngine, after each test."""
    yield
    module = sys.modules.get("mmengine.runner.checkpoint")
    if module is not None:
        register = module.CheckpointLoader.register_scheme
        register("", module.load_from_local, force=True)
        register(("http://", "https://"), module.load_from_http, force=True)


@pytest.fixture(scope="module")
def one_thread():
    """Uses one thread: on images this small a second one costs more than it gains."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def metafiles():
    """Lets MMEngine read each metafile once, not all of a library for every ``library::name``."""
    from mmengine.config import config, utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "is_installed", cache(config.is_installed))
        patch.setattr(utils, "load", cache(utils.load))
        yield


@pytest.fixture
def small_disk():
    """Files cannot grow beyond 100 kB, as on a disk that fills while they are written."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)
