"""The reference's receptive field and influence matrices of a VMamba."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from mmvssm.analysis import RouteScan, influence_matrix, receptive_field, record_scans

from ..cases import Case, Checks, register_reader
from ..compare import Comparison
from ..models import load_weights
from ..recipe import fill_value, make_input
from .vmamba import read

#: Our names of the reference's modes.
MODES = {"CB": "activation", "CwBw": "decayed", "CwBdtw": "influence", "ww": "decay"}
NORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "": lambda x: x,
    "norm": lambda x: (x - x.min()) / (x.max() - x.min()),
    "absnorm": lambda x: x.abs() / x.abs().max(),
}
#: Block 0 of stage 1, of stages of 1, 1, 2 and 1 blocks.
LAYER = 1
#: Rows of the matrices that are stored.
ROWS = [0, 9, 27, 36, 63]
KIND = "analysis_micro_v05_noz_64x64"


@register_reader(f"vmamba/{KIND}")
def read_analysis(case: Case) -> Checks:
    """Read the case, with the field and the matrices as separate parts."""
    spec = read(case)

    def backbone() -> torch.nn.Module:
        weights = {
            entry[0]: torch.from_numpy(fill_value(*entry)) for entry in case.meta["state_dict"]
        }
        model = spec.build("classification")
        load_weights(model, spec.map_state_dict(weights, "classification"))
        return model.to(case.device).eval().backbone

    return {
        "erf": partial(_compare_field, case, backbone),
        "influence": partial(_compare_influence, case, backbone),
    }


def _image(case: Case) -> torch.Tensor:
    return torch.from_numpy(make_input(case.meta["input_shape"], case.meta["input_key"]))


def _compare_field(
    case: Case, backbone: Callable[[], torch.nn.Module], comparison: Comparison
) -> None:
    field = receptive_field(backbone(), [_image(case)])
    comparison.tensor(case.data, "erf", field.contribution)
    comparison.tensor(case.data, "erf.display", field.display())
    for share, (side, ratio) in case.meta["erf_rectangles"].items():
        area = field.area(float(share))
        got = (None, None) if area is None else (area.side, area.ratio)
        comparison.count(f"erf_rectangles {share}", int(got != (side, ratio)))


def _compare_influence(
    case: Case, backbone: Callable[[], torch.nn.Module], comparison: Comparison
) -> None:
    """Compare matrices by name: ``attn.<what>[_norm or _absnorm].<mode>``."""
    (routes,) = record_scans(backbone(), LAYER, _image(case)).routes
    matrices = {mode: [influence_matrix(route, kind) for route in routes]
                for mode, kind in MODES.items()}  # fmt: skip
    for name in case.meta["outputs"]:
        if not name.startswith("attn."):
            continue
        _, what, mode = name.split(".")
        what, _, norm = what.partition("_")
        matrix = _matrix(routes, matrices[mode], what, norm)
        comparison.tensor(case.data, name, matrix[ROWS])


def _matrix(
    routes: list[RouteScan], matrices: list[torch.Tensor], what: str, norm: str
) -> torch.Tensor:
    """Return the matrix that the reference calls ``a0``, ``ao0``, ``all`` or ``nall``."""
    normed = NORMS[norm]
    if what == "all":
        return normed(sum(matrices))
    if what == "nall":
        return sum(normed(matrix) for matrix in matrices) / len(matrices)
    matrix, order = matrices[int(what[-1])], routes[int(what[-1])].read
    return normed(matrix[order][:, order] if what.startswith("ao") else matrix)
