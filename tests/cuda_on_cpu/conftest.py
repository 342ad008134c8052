"""The stand-in for CUDA's driver library, and folders for what NVRTC compiles."""

import shutil

import pytest

from cuda_on_cpu import standin


@pytest.fixture(scope="session")
def standin_folder():
    """Libraries of the stand-in; tests that need them are skipped without a C++ compiler."""
    if shutil.which(standin.COMPILER) is None:
        pytest.skip(f"needs the C++ compiler {standin.COMPILER}")
    return standin.build()


@pytest.fixture(scope="session")
def kept_kernels(tmp_path_factory):
    """A folder for compiled kernels, shared by the tests of a run."""
    return tmp_path_factory.mktemp("kept")
