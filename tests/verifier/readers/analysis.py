"""The reference's receptive field and influence matrices of a VMamba."""

from __future__ import annotations

from functools import partial

import torch

from mmvssm.analysis import receptive_field

from ..cases import Case, Checks, register_reader
from ..compare import Comparison, MalformedCase
from ..models import load_weights
from ..recipe import fill_value, make_input
from .vmamba import read

KIND = "analysis_micro_v05_noz_64x64"


@register_reader(f"vmamba/{KIND}")
def read_analysis(case: Case) -> Checks:
    """Read the case: the field and the matrices are parts of their own."""
    spec = read(case)

    def backbone() -> torch.nn.Module:
        weights = {
            entry[0]: torch.from_numpy(fill_value(*entry)) for entry in case.meta["state_dict"]
        }
        model = spec.build("classification")
        load_weights(model, spec.map_state_dict(weights, "classification"))
        return model.to(case.device).eval().backbone

    return {"erf": partial(_compare_field, case, backbone)}


def _image(case: Case) -> torch.Tensor:
    return torch.from_numpy(make_input(case.meta["input_shape"], case.meta["input_key"]))


def _compare_field(case: Case, backbone, comparison: Comparison) -> None:
    field = receptive_field(backbone(), [_image(case)])
    comparison.tensor(case.data, "erf", field.contribution)
    comparison.tensor(case.data, "erf.display", field.display())
    for share, (side, ratio) in case.meta["erf_rectangles"].items():
        area = field.area(float(share))
        got = (None, None) if area is None else (area.side, area.ratio)
        comparison.count(f"erf_rectangles {share}", int(got != (side, ratio)))
