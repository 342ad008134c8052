"""Install mmvssm and build its native ops.

The ops are compiled against the installed torch, so build in its environment:
``pip install --no-build-isolation .`` (``MMVSSM_WITH_OPS=0`` skips them).
"""

import importlib.util
import os
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    text = (ROOT / "mmvssm" / "version.py").read_text()
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


def read_requirements(name: str) -> list[str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def load_ops_build():
    """Load the module ``ops/build.py``, which describes the native build and is not installed."""
    spec = importlib.util.spec_from_file_location("mmvssm_ops_build", ROOT / "ops" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def link_shared_files() -> None:
    """Link files from outside the package into it, where the links are missing.

    ``mmvssm/.mim`` holds what MIM and ``mmvssm::`` look for in a package, ``mmvssm/ops/csrc`` the
    CUDA sources that NVRTC compiles. In a source archive both are copies of the folders, which are
    kept. In a checkout they are links, which some ways of copying a tree drop or turn into text
    files.
    """
    links = {f"mmvssm/.mim/{name}": name for name in ("configs", "model-index.yml", "tools")}
    for name, target in {**links, "mmvssm/ops/csrc": "ops/csrc"}.items():
        link = ROOT / name
        if not (ROOT / target).exists() or link.is_dir() or link.is_symlink():
            continue
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(ROOT / target, link.parent))


ops_build = load_ops_build()
link_shared_files()

setup(
    name="mmvssm",
    version=read_version(),
    description="Visual state-space backbones for mmpretrain, mmdet and mmsegmentation",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords="computer vision, state space model, Mamba, VMamba, OpenMMLab",
    classifiers=[
        "Development Status :: 4 - Beta",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C++",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["mmvssm", "mmvssm.*"]),
    include_package_data=True,
    python_requires=">=3.10,<3.14",
    install_requires=read_requirements("runtime"),
    extras_require={
        name: read_requirements(name)
        for name in ("mminstall", "tests", "demo", "docs", "analysis", "export", "app")
    },
    ext_modules=ops_build.extensions(),
    cmdclass=ops_build.cmdclass(),
    zip_safe=False,
)
