"""The numbers of golden cases: inputs and weights as functions of names, and the comparison.

A case stores no weights. Every parameter's value follows from its name and shape in
the reference's state dict, so whoever builds the same architecture can fill it alike.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

DECAY_LEAVES = ("A_log", "A_logs", "A_b_log", "A_c_log", "A_c_b_log")
SKIP_LEAVES = ("D", "D_b", "D_c", "D_c_b")
ROTARY_LEAVES = {"freqs_cos": np.cos, "freqs_sin": np.sin}
ROTARY_SIDE = 14  # the coordinate that a side of any length ends at


def _normal(key: str, shape: Sequence[int]) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    return generator.standard_normal(tuple(shape), dtype=np.float32)


def make_input(shape: Sequence[int], key: str = "input") -> np.ndarray:
    """Standard normal float32 array, a function of ``key`` and ``shape`` alone."""
    return _normal(key, shape)


def fill_value(key: str, shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
    """The value of one state-dict entry.

    Args:
        key: The reference's name of the entry.
        shape: Its shape.
        dtype: Its dtype; integer entries (counters) are 0.

    Raises:
        ValueError: If the shape is none of a rotary table, whose value is the true one.
    """
    shape = tuple(shape)
    if dtype.startswith(("int", "uint")):
        return np.zeros(shape, dtype=dtype)
    leaf = key.rsplit(".", 1)[-1]
    if leaf in ROTARY_LEAVES:
        return _rotary_table(shape, ROTARY_LEAVES[leaf])
    x = _normal(key, shape)
    if leaf in DECAY_LEAVES or (leaf.startswith("A_") and leaf.endswith(("log", "logs"))):
        value = np.log(np.arange(1, shape[-1] + 1, dtype=np.float32)) + 0.1 * x
    elif leaf in SKIP_LEAVES or leaf.startswith(("Ds", "D_")):
        value = 1.0 + 0.1 * x
    elif "dt_proj" in key.lower() and leaf.endswith("bias"):
        value = -4.5 + 0.7 * x
    elif leaf == "running_mean":
        value = 0.1 * x
    elif leaf == "running_var":
        value = 1.0 + 0.1 * np.abs(x)
    elif len(shape) <= 1:
        value = 1.0 + 0.1 * x if leaf.endswith(("weight", "gamma")) else 0.1 * x
    elif "pos_embed" in key.lower() or "cls_token" in key.lower():
        value = 0.2 * x
    else:
        value = x / math.sqrt(max(_fan_in(key, leaf, shape), 1))
    return value.astype(np.float32)


def _rotary_table(shape: tuple[int, int], function: Callable) -> np.ndarray:
    """Angles of a square grid: rows turn the first half of the channels, columns the second."""
    tokens, channels = shape
    side, half = math.isqrt(tokens), channels // 2
    if side * side != tokens or channels % 4:
        raise ValueError(f"a rotary table must be (side * side, 4 * n), got {shape}")
    speed = 10000.0 ** (-2.0 * (np.arange(half) // 2) / half)
    angle = np.arange(side)[:, None] * ROTARY_SIDE / side * speed
    row, column = np.divmod(np.arange(tokens), side)
    return function(np.concatenate([angle[row], angle[column]], axis=1)).astype(np.float32)


def _fan_in(key: str, leaf: str, shape: tuple[int, ...]) -> int:
    low = key.lower()
    grouped_linear = len(shape) == 3 and "proj" in low and "weight" in leaf and "conv" not in low
    return shape[-1] if grouped_linear else math.prod(shape[1:])


def relative_error(data: Mapping[str, np.ndarray], name: str, value: np.ndarray) -> float:
    """``|value - stored| / |stored|`` (L2) over the stored positions; inf for another shape.

    Args:
        data: Arrays of the case: ``name``, ``name.index``, ``name.shape``.
        name: The tensor.
        value: What was computed.

    Raises:
        KeyError: If the case does not store the tensor.
    """
    if tuple(value.shape) != tuple(int(side) for side in data[f"{name}.shape"]):
        return math.inf
    stored = data[name].astype(np.float64)
    got = value.reshape(-1)[data[f"{name}.index"]].astype(np.float64)
    return float(np.linalg.norm(got - stored) / max(float(np.linalg.norm(stored)), 1e-30))
