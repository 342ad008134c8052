"""mmvssm: visual state-space backbones for the OpenMMLab libraries.

Importing the package is cheap: it imports no model, and native code only if
torch is already imported, so that saved programs find their ops. Configs build
the backbones as ``type='mmvssm.VMamba'``; mmengine then imports
:mod:`mmvssm.registry` by itself.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from mmengine.config.utils import MODULE2PACKAGE

from .options import add_options
from .scheme import register_scheme
from .version import __version__
from .zoo import get_model, list_models

# mmengine resolves ``_base_ = 'mmvssm::...'`` only for packages in this table.
# It looks the value up as a distribution, then as a module and takes its folder:
# a submodule name gives the right folder in wheel and editable installs.
MODULE2PACKAGE.setdefault("mmvssm", "mmvssm.version")
# Forks of mmsegmentation have another distribution name; let mmengine find the module instead.
try:
    distribution(MODULE2PACKAGE["mmseg"])
except PackageNotFoundError:
    MODULE2PACKAGE["mmseg"] = "mmseg"
register_scheme()
# torch looks our ops up when it loads TorchScript files and exported programs.
if "torch" in sys.modules:
    importlib.import_module("mmvssm.ops")

__all__ = [
    "__version__",
    "add_options",
    "config_path",
    "get_model",
    "list_models",
    "register_scheme",
]


def config_path(name: str) -> str:
    """Return the absolute path of one of the package's config files.

    Use it for ``_base_`` in configs for stock OpenMMLab scripts::

        _base_ = __import__('mmvssm').config_path('vmamba/vmamba-tiny-s1l8_8xb128_in1k.py')

    Args:
        name: Path relative to the package's ``configs`` folder.

    Returns:
        The absolute path of the file.

    Raises:
        FileNotFoundError: If there is no such config; the message lists the
            closest names.
    """
    root = Path(__file__).resolve().parent / ".mim" / "configs"
    path = root / name
    if path.is_file():
        return str(path)
    known = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py"))
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.3)
    raise FileNotFoundError(
        f"mmvssm has no config {name!r} below {root}; closest: {', '.join(close) or 'none'}"
    )
