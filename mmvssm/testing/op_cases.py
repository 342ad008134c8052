"""Golden cases of the bare operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mmvssm.ops import routes, selective_scan

from .compare import Comparison, MalformedCase
from .recipe import make_input

Outputs = dict[str, Tensor]


def _selective_scan_inputs(case: dict) -> dict[str, np.ndarray]:
    raw = _raw_inputs(case)
    softplus = case["delta_softplus"]
    delta = raw["delta"] if softplus else np.abs(raw["delta"])
    inputs = dict(raw, delta=case["delta_scale"] * delta + case["delta_shift"])
    inputs["A"] = -np.arange(1, case["d_state"] + 1) * np.exp(0.1 * raw["A"])
    if "D" in raw:
        inputs["D"] = 1 + 0.1 * raw["D"]
    if "delta_bias" in raw:
        bias = raw["delta_bias"]
        inputs["delta_bias"] = 0.5 * bias if softplus else 0.05 * np.abs(bias)
    return inputs


def _selective_scan(case: dict, inputs: dict[str, Tensor]) -> Outputs:
    y, last_state = selective_scan(
        **inputs, delta_softplus=case["delta_softplus"], return_last_state=True
    )
    return {"y": y, "last_state": last_state}


def _scalar_decay_inputs(case: dict) -> dict[str, np.ndarray]:
    raw = _raw_inputs(case)
    return dict(
        raw,
        dt=0.5 * raw["dt"] - 1,
        A=-np.exp(0.5 * raw["A"]),
        D=1 + 0.1 * raw["D"],
        dt_bias=0.5 * raw["dt_bias"],
    )


def _scalar_decay_scan(case: dict, inputs: dict[str, Tensor]) -> Outputs:
    """The scan with one decay per head: every channel of a head takes its step and decay."""
    x, D = inputs["x"], inputs["D"]
    batch, length, heads, head_dim = x.shape
    y, last_state = selective_scan(
        x.flatten(2).transpose(1, 2).contiguous(),
        inputs["dt"].transpose(1, 2).contiguous(),
        inputs["A"].repeat_interleave(head_dim)[:, None].repeat(1, case["d_state"]),
        inputs["B"].permute(0, 2, 3, 1).contiguous(),
        inputs["C"].permute(0, 2, 3, 1).contiguous(),
        D.flatten(),
        delta_bias=inputs["dt_bias"],
        delta_softplus=True,
        return_last_state=True,
    )
    return {
        "y": y.transpose(1, 2).reshape(batch, length, heads, head_dim),
        "final_state": last_state.reshape(batch, heads, head_dim, case["d_state"]),
    }


#: For each kind of file: its inputs from the recipe, and the operator.
SCANS: dict[str, tuple[Callable, Callable]] = {
    "selective_scan": (_selective_scan_inputs, _selective_scan),
    "scalar_decay_scan": (_scalar_decay_inputs, _scalar_decay_scan),
}


def _raw_inputs(case: dict) -> dict[str, np.ndarray]:
    return {
        name: make_input(shape, f"ops/{case['name']}/{name}").astype(np.float64)
        for name, shape in case["input_shapes"].items()
    }


def compare_scan(
    kind: str, case: dict, data: dict[str, np.ndarray], comparison: Comparison, *, device: str
) -> None:
    """Run one case of ``selective_scan.json`` or ``scalar_decay_scan.json`` in float32.

    Args:
        kind: A key of :data:`SCANS`.
        case: The entry of the file's ``cases``.
        data: The arrays of the file.
        comparison: Takes the errors.
        device: Where to run.
    """
    make_inputs, operator = SCANS[kind]
    inputs = {
        name: torch.tensor(value, dtype=torch.float32, device=device, requires_grad=True)
        for name, value in make_inputs(case).items()
    }
    outputs = operator(case, inputs)
    y = outputs["y"]
    cotangent = make_input(y.shape, f"ops/{case['name']}/dy")
    (y * torch.from_numpy(cotangent).to(device)).sum().backward()
    outputs.update({f"grad.{name}": value.grad for name, value in inputs.items()})
    for name in case["outputs"]:
        if name not in outputs:
            raise MalformedCase(f"stores {name!r}, which {kind} does not give")
        comparison.tensor(data, f"{case['name']}/{name}", outputs[name])


def compare_tables(meta: dict, comparison: Comparison, *, device: str) -> None:
    """Compare the route tables of ``cross_scan.json`` and their inverses."""
    for table in meta["tables"]:
        mode, height, width = table["mode"], table["height"], table["width"]
        builder = {"cross2d": routes.cross2d, "unidi": routes.unidi, "bidi": routes.bidi}.get(mode)
        if builder is None:
            raise MalformedCase(f"mode must be cross2d, unidi or bidi, got {mode!r}")
        scan = builder(height, width, device=device).cpu()
        for name, got in (("scan", scan), ("merge_source", scan.argsort(dim=1))):
            different = int((got != torch.tensor(table[name])).sum())
            comparison.count(f"{mode} {height}x{width} {name}", different)
