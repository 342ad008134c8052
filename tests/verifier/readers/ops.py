"""Golden cases of the bare operators."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mmvssm.ops import routes, selective_scan

from ..cases import Case, Checks, register_reader
from ..compare import Comparison, MalformedCase
from ..recipe import make_input

Values = dict[str, np.ndarray]
Tensors = dict[str, Tensor]
ROUTES = {"cross2d": routes.cross2d, "unidi": routes.unidi, "bidi": routes.bidi}


def _selective_scan_inputs(case: dict, raw: Values) -> Values:
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


def _selective_scan(case: dict, inputs: Tensors) -> Tensors:
    y, last_state = selective_scan(
        **inputs, delta_softplus=case["delta_softplus"], return_last_state=True
    )
    return {"y": y, "last_state": last_state}


def _scalar_decay_inputs(case: dict, raw: Values) -> Values:
    return dict(
        raw,
        dt=0.5 * raw["dt"] - 1,
        A=-np.exp(0.5 * raw["A"]),
        D=1 + 0.1 * raw["D"],
        dt_bias=0.5 * raw["dt_bias"],
    )


def _scalar_decay_scan(case: dict, inputs: Tensors) -> Tensors:
    """Scan with one decay per head: every channel of a head takes its step and decay."""
    batch, length, heads, head_dim = inputs["x"].shape
    y, last_state = selective_scan(
        inputs["x"].flatten(2).transpose(1, 2).contiguous(),
        inputs["dt"].transpose(1, 2).contiguous(),
        inputs["A"].repeat_interleave(head_dim)[:, None].repeat(1, case["d_state"]),
        inputs["B"].permute(0, 2, 3, 1).contiguous(),
        inputs["C"].permute(0, 2, 3, 1).contiguous(),
        inputs["D"].flatten(),
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


@register_reader("ops/selective_scan")
@register_reader("ops/scalar_decay_scan")
def read_scans(case: Case) -> Checks:
    """Read a file of scans in float32, one part a scan."""
    return {scan["name"]: partial(_compare_scan, case, scan) for scan in case.meta["cases"]}


def _compare_scan(case: Case, scan: dict, comparison: Comparison) -> None:
    kind, name = case.meta["case"], scan["name"]
    make_inputs, operator = SCANS[kind]
    raw = {
        key: make_input(shape, f"ops/{name}/{key}").astype(np.float64)
        for key, shape in scan["input_shapes"].items()
    }
    inputs = {
        key: torch.tensor(value, dtype=torch.float32, device=case.device, requires_grad=True)
        for key, value in make_inputs(scan, raw).items()
    }
    outputs = operator(scan, inputs)
    cotangent = torch.from_numpy(make_input(outputs["y"].shape, f"ops/{name}/dy"))
    (outputs["y"] * cotangent.to(case.device)).sum().backward()
    outputs.update({f"grad.{key}": value.grad for key, value in inputs.items()})
    for key in scan["outputs"]:
        if key not in outputs:
            raise MalformedCase(f"stores {key!r}, which {kind} does not give")
        comparison.tensor(case.data, f"{name}/{key}", outputs[key])


@register_reader("ops/cross_scan")
def read_tables(case: Case) -> Checks:
    """Read route tables and their inverses, which the json holds itself."""
    return {"": partial(_compare_tables, case)}


def _compare_tables(case: Case, comparison: Comparison) -> None:
    for table in case.meta["tables"]:
        mode, height, width = table["mode"], table["height"], table["width"]
        if mode not in ROUTES:
            raise MalformedCase(f"mode must be cross2d, unidi or bidi, got {mode!r}")
        scan = ROUTES[mode](height, width)
        for name, got in (("scan", scan), ("merge_source", scan.argsort(dim=1))):
            different = int((got != torch.tensor(table[name])).sum())
            comparison.count(f"{mode} {height}x{width} {name}", different)
