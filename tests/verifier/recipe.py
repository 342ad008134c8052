"""Weights and inputs of golden cases: functions of names and shapes alone, never stored."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

DECAY_LEAVES = ("A_log", "A_logs", "A_b_log", "A_c_log", "A_c_b_log")
ROTARY_LEAVES = {"freqs_cos": np.cos, "freqs_sin": np.sin}
ROTARY_SIDE = 14  # the coordinate at the end of a side of any length


def make_input(shape: Sequence[int], key: str = "input") -> np.ndarray:
    """Return a standard normal float32 array of ``shape``, seeded by ``key``."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    return generator.standard_normal(tuple(shape), dtype=np.float32)


def fill_value(key: str, shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
    """Return the value of one state-dict entry by its reference name; integers are 0."""
    shape, low, leaf = tuple(shape), key.lower(), key.rsplit(".", 1)[-1]
    if dtype.startswith(("int", "uint")):
        return np.zeros(shape, dtype=dtype)
    if leaf in ROTARY_LEAVES:  # the only tensors that hold their true values
        return ROTARY_LEAVES[leaf](_rotary_angles(shape)).astype(np.float32)
    x = make_input(shape, key)
    if leaf in DECAY_LEAVES or (leaf.startswith("A_") and leaf.endswith(("log", "logs"))):
        value = np.log(np.arange(1, shape[-1] + 1, dtype=np.float32)) + 0.1 * x
    elif leaf == "D" or leaf.startswith(("Ds", "D_")):
        value = 1.0 + 0.1 * x
    elif "dt_proj" in low and leaf.endswith("bias"):
        value = -4.5 + 0.7 * x
    elif leaf == "running_mean":
        value = 0.1 * x
    elif leaf == "running_var":
        value = 1.0 + 0.1 * np.abs(x)
    elif len(shape) <= 1:
        value = 1.0 + 0.1 * x if leaf.endswith(("weight", "gamma")) else 0.1 * x
    elif "pos_embed" in low or "cls_token" in low:
        value = 0.2 * x
    else:
        grouped = len(shape) == 3 and "proj" in low and "weight" in leaf and "conv" not in low
        value = x / math.sqrt(max(shape[-1] if grouped else math.prod(shape[1:]), 1))
    return value.astype(np.float32)


def _rotary_angles(shape: tuple[int, int]) -> np.ndarray:
    """Angles of a square grid: rows turn the first half of the channels, columns the second."""
    tokens, channels = shape
    side, half = math.isqrt(tokens), channels // 2
    if side * side != tokens or channels % 4:
        raise ValueError(f"a rotary table must be (side * side, 4 * n), got {shape}")
    speed = 10000.0 ** (-2.0 * (np.arange(half) // 2) / half)
    angle = np.arange(side)[:, None] * ROTARY_SIDE / side * speed
    row, column = np.divmod(np.arange(tokens), side)
    return np.concatenate([angle[row], angle[column]], axis=1)
