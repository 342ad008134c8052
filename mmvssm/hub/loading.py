"""Safe loading of a checkpoint's weights into a model."""

from __future__ import annotations

from torch import nn

from mmvssm.checkpoint import Checkpoint, read_checkpoint, select_weights
from mmvssm.messages import join_names
from mmvssm.scheme import SCHEME

from .store import fetch


def read_weights_file(checkpoint: str) -> Checkpoint:
    """Return the content of a checkpoint; no code of the file is run.

    Args:
        checkpoint: Path of a file, or ``'mmvssm://NAME'`` (see :func:`fetch`).

    Raises:
        ValueError: If it is not a checkpoint, or is a plain URL, whose file would not be checked.
        FileNotFoundError: If there is no such file.
        ReleasedFileError: See :func:`fetch`.
    """
    if checkpoint.startswith(SCHEME):
        return read_checkpoint(fetch(checkpoint))
    if "://" in checkpoint:
        raise ValueError(f"download the checkpoint first, or name it {SCHEME}{checkpoint}")
    return read_checkpoint(checkpoint)


def load_weights(model: nn.Module, checkpoint: str, prefix: str = "") -> None:
    """Load all weights of a model; no code of the file is run.

    Args:
        model: The model of a config, or a part of it.
        checkpoint: Path of a checkpoint of a training run or of ``tools/convert_ema.py``, or
            ``'mmvssm://NAME'`` (see :func:`fetch`). Averaged weights are preferred.
        prefix: Prefix of the part's names in the checkpoint, such as ``'backbone.'``; weights of
            other parts are ignored.

    Raises:
        ValueError: If it is not a checkpoint, or its weights do not fit the model.
        FileNotFoundError: If there is no such file.
        ReleasedFileError: See :func:`fetch`.
    """
    tensors = {
        name.removeprefix(prefix): value
        for name, value in select_weights(read_weights_file(checkpoint)).tensors.items()
        if name.startswith(prefix)
    }
    try:
        missing = set(model.load_state_dict(tensors, strict=False).missing_keys)
    except RuntimeError as error:  # shapes differ
        raise ValueError(f"{checkpoint!r} does not fit the config: {error}") from None
    absent = [name for name, _ in model.named_parameters() if name in missing]
    if absent:
        raise ValueError(
            f"{checkpoint!r} does not fit the config: {len(absent)} parameters are missing, e.g."
            f" {join_names(absent, 3)} (tools/convert_ema.py converts files of the authors)"
        )
