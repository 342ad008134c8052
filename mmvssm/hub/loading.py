"""The weights of a checkpoint, read safely, in a model."""

from __future__ import annotations

from torch import nn

from mmvssm.checkpoint import Checkpoint, read_checkpoint, select_weights
from mmvssm.messages import join_names
from mmvssm.scheme import SCHEME

from .store import fetch


def read_weights_file(checkpoint: str) -> Checkpoint:
    """Return the content of a checkpoint; no code of the file is run.

    Args:
        checkpoint: Path of a file, or ``'mmvssm://NAME'``, see :func:`fetch`.

    Raises:
        ValueError: If it is no checkpoint, or another URL, which nothing would check.
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
        model: A model of a config, or a part of one.
        checkpoint: Path of a checkpoint of a training or of ``tools/convert_ema.py``, or
            ``'mmvssm://NAME'``, see :func:`fetch`. Of averaged and other weights the averaged.
        prefix: What names of a part begin with in the checkpoint, such as ``'backbone.'``; weights
            of other parts are left out.

    Raises:
        ValueError: If it is no checkpoint, or its weights are others than the model's.
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
    except RuntimeError as error:  # of tensors of other shapes
        raise ValueError(f"{checkpoint!r} does not fit the config: {error}") from None
    absent = [name for name, _ in model.named_parameters() if name in missing]
    if absent:
        raise ValueError(
            f"{checkpoint!r} does not fit the config: {len(absent)} parameters are absent, e.g."
            f" {join_names(absent, 3)} (tools/convert_ema.py converts what the authors released)"
        )
