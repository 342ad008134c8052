"""Programs in processes of their own that start at once.

To import torch and what the libraries import beside it takes longer than many a test. So programs
are forked from a server that has done it, one for each process of pytest. It does not load this
package nor the three libraries: a program that forgets to import them fails as it does for a user.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from tempfile import NamedTemporaryFile
from unittest import mock

import numpy as np

TESTS = Path(__file__).parent
LOADED = [
    "torch.distributed.fsdp", "torch.distributed.optim", "torch._dynamo", "torchvision.models",
    "matplotlib.pyplot", "scipy.stats", "sklearn.gaussian_process", "mmengine.runner", "mmcv",
]  # fmt: skip


def run_program(
    command: Sequence[object],
    folder: Path,
    environment: Mapping[str, str],
    timeout: float = 300,
) -> tuple[int, str]:
    """Run a Python file like ``python FILE ARGUMENTS ...``.

    Args:
        command: The file and its arguments.
        folder: Folder to run in.
        environment: The variables. Those that Python or torch reads while it loads have no effect:
            such a program needs a plain subprocess. Of PYTHONWARNINGS, ``ignore`` works.
        timeout: Seconds after which it is killed.

    Returns:
        The exit status, and the output with standard error.
    """
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES=""):
        forkserver.set_forkserver_preload(LOADED)
        forkserver.ensure_running()
    words = [str(word) for word in command]
    with NamedTemporaryFile("r+") as output:
        process = multiprocessing.get_context("forkserver").Process(
            target=_main, args=(words, str(folder), dict(environment), output.name)
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
        return process.exitcode, output.read()


def _main(words: list[str], folder: str, environment: dict[str, str], output: str) -> None:
    """Become the program; run in the forked process."""
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    own = [path for path in sys.path if path and not Path(path).is_relative_to(TESTS)]
    given = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [os.path.dirname(os.path.abspath(words[0])), *filter(None, given), *own]
    sys.argv[:] = words
    if environment.get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
    np.random.seed()  # forked, all would draw the same numbers
    runpy.run_path(words[0], run_name="__main__")
