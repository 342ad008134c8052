"""Reading checkpoint files without running anything that stands in them."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Where a checkpoint keeps its weights: MMEngine's key, then that of most research code.
WEIGHTS = ("state_dict", "model")
_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    **{("torch", name): value for name, value in vars(torch).items() if type(value) is torch.dtype},
}


class _Inert:
    """Stands for every object of a file that is no tensor: it takes everything and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _ignore(self, *args: Any, **kwargs: Any) -> _Inert:
        return self

    __call__ = __setstate__ = __setitem__ = append = extend = add = update = _ignore


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _ALLOWED.get((module, name), _Inert)


class _TensorsOnly:
    """What ``torch.load`` takes for the module ``pickle``."""

    Unpickler = _Unpickler


def read_checkpoint(path: str | Path) -> dict:
    """The content of a file that ``torch.save`` wrote, tensors on the CPU.

    Nothing of the file is run: only tensors and plain Python values are made, all other objects
    (such as the log buffers of MMEngine's runner and the options of research code) become inert.

    Args:
        path: The file, in the zip format of torch 1.6 and later.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not such a checkpoint, is damaged, or holds no dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {str(path)!r}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{str(path)!r} is no checkpoint file of torch 1.6 or later, or cut off")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise ValueError("it is a TorchScript program")
        content = torch.load(
            path, map_location="cpu", pickle_module=_TensorsOnly, weights_only=False
        )
    except Exception as error:  # damaged files fail in every possible way
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise ValueError(f"{str(path)!r} cannot be read as a checkpoint: {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds no dict, but {type(content).__name__}")
    return content


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint, by name, without the prefix ``module.`` of parallel training.

    Args:
        checkpoint: What :func:`read_checkpoint` gives: the weights themselves, or a dict that
            holds them as ``state_dict`` or ``model``.

    Raises:
        ValueError: If there are none; the message lists what there is.
    """
    for weights in (*(checkpoint.get(name) for name in WEIGHTS), checkpoint):
        if isinstance(weights, Mapping):
            found = {
                str(name).removeprefix("module."): value
                for name, value in weights.items()
                if isinstance(value, Tensor)
            }
            if found:
                return found
    raise ValueError(
        f"the checkpoint holds no weights under {' or '.join(map(repr, WEIGHTS))} or at its top;"
        f" it holds {', '.join(map(repr, list(checkpoint)[:8])) or 'nothing'}"
    )
