"""Golden cases of whole models: from the reference's description to our model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from mmvssm.checkpoint import map_key, map_state_dict, split_part

from .compare import Comparison, MalformedCase, UnsupportedCase
from .families import READERS, Reading
from .recipe import fill_value, make_input

#: Names of the outputs of each task's model; the loss is of the last task that a case stores.
OUTPUTS = {"dense": r"(stage|tokens|fpn|p)\d", "classification": r"pooled|logits"}


def compare_model(
    meta: dict, data: dict[str, np.ndarray], comparison: Comparison, *, device: str
) -> None:
    """Build what a case describes, fill it, run it, and compare outputs and gradients.

    Stage maps are those of the dense backbone, pooled features and logits those of the
    classifier, whose last norm differs; each is built if the case stores something of it.

    Args:
        meta: The case's json.
        data: The case's arrays.
        comparison: Takes the errors.
        device: Where to run.

    Raises:
        KeyError: If a field of the case is missing.
        MalformedCase: If the case contradicts itself or the model it describes.
        UnsupportedCase: If it is of a family or variant that is not built.
    """
    family = meta["family"]
    if family not in READERS:
        raise UnsupportedCase(f"family {family!r} is not built; built are {', '.join(READERS)}")
    reading = READERS[family](meta["build"])
    wanted = [name for name in meta["outputs"] if name != "grad.input"]
    outputs_of = {task: [n for n in wanted if re.fullmatch(OUTPUTS[task], n)] for task in OUTPUTS}
    probes = [name for name in wanted if name in {**reading.probes, **reading.inputs}]
    known = {*probes, *(name for names in outputs_of.values() for name in names)}
    foreign = [name for name in wanted if name not in known]
    if foreign:
        raise UnsupportedCase(
            f"stores {', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}:"
            " neither maps nor logits of a model"
        )
    if meta.get("mode", "eval") != "eval":
        raise MalformedCase(f"mode must be 'eval', got {meta['mode']!r}")
    weights = {
        key: torch.from_numpy(fill_value(key, shape, dtype))
        for key, shape, dtype in meta["state_dict"]
    }
    dtype = getattr(torch, meta.get("dtype", "float32"))

    tasks = [task for task in OUTPUTS if outputs_of[task]]
    for task in tasks:
        model = reading.build(task)
        _load(model, map_state_dict(weights, reading.family, task))
        if task == "classification":
            _compare_size(meta, model)
        model.to(device=device, dtype=dtype).eval()
        image = torch.from_numpy(make_input(meta["input_shape"], meta["input_key"]))
        image = image.to(device=device, dtype=dtype)
        # gradients are those of the logits, or of the last map where there are no logits
        if task == tasks[-1]:
            image.requires_grad_(True)
            with _probed(model.backbone, reading, probes) as probed:
                outputs = model(image)
            loss_of = "logits" if task == "classification" else max(outputs_of[task], key=_order)
            cotangent = torch.from_numpy(make_input(outputs[loss_of].shape, "cotangent"))
            (outputs[loss_of] * cotangent.to(image)).sum().backward()
            _compare_gradients(meta, data, comparison, model, image, reading.family, task)
            for name in probes:
                comparison.tensor(data, name, probed.get(name))
        else:
            with torch.no_grad():
                outputs = model(image)
        for name in outputs_of[task]:
            comparison.tensor(data, name, outputs.get(name))


def _order(name: str) -> tuple[bool, str]:
    """Stages last, since what a neck makes of them takes part in no loss."""
    return name.startswith(("stage", "tokens")), name


@contextmanager
def _probed(
    backbone: nn.Module, reading: Reading, names: Iterable[str]
) -> Iterator[dict[str, Tensor]]:
    """Collect outputs and inputs of modules inside the backbone by their names."""
    found: dict[str, Tensor] = {}
    handles = []
    for name in names:
        if name in reading.inputs:
            module = backbone.get_submodule(reading.inputs[name])

            def keep_input(module, inputs, name=name) -> None:
                found[name] = inputs[0]

            handles.append(module.register_forward_pre_hook(keep_input))
            continue
        path, take = reading.probes[name]

        def keep(module, inputs, output, name=name, take=take) -> None:
            found[name] = take(output)

        handles.append(backbone.get_submodule(path).register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _load(model: nn.Module, state_dict: dict[str, Tensor]) -> None:
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state_dict.items()}
    problems = {
        "missing in state_dict": sorted(own.keys() - given.keys()),
        "unknown to the model": sorted(given.keys() - own.keys()),
        "of another shape": sorted(k for k in own.keys() & given.keys() if own[k] != given[k]),
    }
    text = [
        f"{len(keys)} key(s) {what} ({keys[0]}, ...)" for what, keys in problems.items() if keys
    ]
    if text:
        raise MalformedCase("; ".join(text))
    model.load_state_dict(state_dict)


def _compare_size(meta: dict, model: nn.Module) -> None:
    count = sum(p.numel() for p in model.parameters())
    for name in ("params", "num_params"):
        if meta.get(name, count) != count:
            raise MalformedCase(f"the model has {count} parameters, the case says {meta[name]}")


def _compare_gradients(
    meta: dict,
    data: dict[str, np.ndarray],
    comparison: Comparison,
    model: nn.Module,
    image: Tensor,
    family: str,
    task: str,
) -> None:
    if "grad.input" in meta["outputs"]:
        comparison.tensor(data, "grad.input", image.grad)
    if "gradnorm.keys" not in data:
        return
    parameters = dict(model.named_parameters())
    num_parts = Counter(
        split_part(name)[0]
        for key in data["gradnorm.keys"].tolist()
        if (name := map_key(key, family, task)) is not None
    )
    stored, got = {}, {}
    for key, value in zip(data["gradnorm.keys"].tolist(), data["gradnorm.values"].tolist()):
        name = map_key(key, family, task)
        if name is None and value == 0:  # no part of this task's model, and of no effect
            continue
        name, part = (None, None) if name is None else split_part(name)
        parameter = parameters.get(name)
        if parameter is None:
            raise MalformedCase(f"gradnorm.keys names {key!r}, which is no parameter of the model")
        stored[key] = value
        gradient = parameter.grad
        if gradient is not None and part is not None:
            gradient = gradient.chunk(num_parts[name])[part]
        got[key] = 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient.double()))
    comparison.norms(stored, got)
