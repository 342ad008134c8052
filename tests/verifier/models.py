"""Golden cases of networks: from the description of a model to the comparison."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmvssm.checkpoint import map_key, map_state_dict

from .compare import Comparison, MalformedCase, UnsupportedCase
from .recipe import fill_value, make_input

if TYPE_CHECKING:
    from .cases import Case

#: Names of the outputs of each task's model; the loss is of the last task that a case stores.
OUTPUTS = {"dense": r"(stage|tokens|fpn|p)\d", "classification": r"pooled|logits"}


@dataclass(frozen=True)
class ModelSpec:
    """How to build the models that a case describes.

    Attributes:
        family: Family whose key names the case has, see :func:`mmvssm.checkpoint.map_key`.
        build: From a task (``'classification'`` or ``'dense'``) to a model with ``backbone``
            that maps an image to a dict of outputs.
        renames: Names of this case alone, for ``'dense'``: from the beginning of a key to the
            beginning of ours, or to None for keys without use.
        outputs: From a name that a case may store to the path of the module inside the backbone
            whose output it is.
        inputs: The same for the first input of a module.
    """

    family: str
    build: Callable[[str], nn.Module]
    renames: Mapping[str, str | None] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    def map_key(self, key: str, task: str) -> str | None:
        """Return our name of a key; None if it is unused."""
        if task == "dense":
            for prefix, ours in self.renames.items():
                if key.startswith(prefix):
                    return None if ours is None else ours + key.removeprefix(prefix)
        return map_key(key, self.family, task)

    def map_state_dict(self, state_dict: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
        """Return weights under our names."""
        renames = tuple(self.renames) if task == "dense" else ()
        own = {key: state_dict[key] for key in state_dict if key.startswith(renames)}
        rest = {key: state_dict[key] for key in state_dict if key not in own}
        named = {self.map_key(key, task): value for key, value in own.items()}
        named.pop(None, None)
        return {**map_state_dict(rest, self.family, task), **named}


class Classifier(nn.Module):
    """Backbone, mean over the pixels if it gives maps, linear head.

    Args:
        backbone: The last of its outputs is ``(B, C, H, W)``, ``(B, C)`` or ``(B, L, C)``.
        num_classes: Classes of the head.
        max_pool: Take the maximum of the logits over the sequence.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, max_pool: bool = False) -> None:
        super().__init__()
        dims = backbone.embed_dims
        width = dims[-1] if isinstance(dims, Sequence) else dims
        self.backbone, self.max_pool = backbone, max_pool
        self.head = nn.ModuleDict({"fc": nn.Linear(width, num_classes)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pooled = self.backbone(x)[-1]
        if pooled.dim() == 4:
            pooled = pooled.mean((2, 3))
        logits = self.head["fc"](pooled)
        return {"pooled": pooled, "logits": logits.amax(1) if self.max_pool else logits}


class Dense(nn.Module):
    """Backbone with outputs called ``names``, and an optional pyramid on them with its names."""

    def __init__(
        self,
        backbone: nn.Module,
        names: Sequence[str],
        neck: nn.Module | None = None,
        neck_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.backbone, self.names = backbone, names
        self.neck, self.neck_names = neck, neck_names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outs = self.backbone(x)
        pyramid = () if self.neck is None else self.neck(outs)
        return {**dict(zip(self.names, outs)), **dict(zip(self.neck_names, pyramid))}


def hierarchical(
    family: str,
    backbone: Callable[..., nn.Module],
    options: dict,
    num_classes: int,
    classifier: Mapping = MappingProxyType({}),
    **names,
) -> ModelSpec:
    """Return the models of a hierarchical backbone.

    Args:
        family: Family of the key names.
        backbone: The class.
        options: Its arguments, with a dict as ``arch``; ``out_indices`` are those of maps.
        num_classes: Classes of the head.
        classifier: Arguments that the classifier's backbone has besides.
        **names: ``outputs`` and ``inputs`` of :class:`ModelSpec`.
    """

    def build(task: str) -> nn.Module:
        if task == "classification":
            last = len(options["arch"]["depths"]) - 1
            own = {**options, **classifier, "out_indices": (last,)}
            return Classifier(backbone(**own), num_classes)
        model = backbone(**options)
        return Dense(model, [f"stage{i}" for i in sorted(set(model.out_indices))])

    return ModelSpec(family, build, **names)


def compare_model(case: Case, spec: ModelSpec, comparison: Comparison) -> None:
    """Build what a case describes, fill it, run it, and compare outputs and gradients.

    Stage maps are those of the dense backbone, pooled features and logits those of the
    classifier, whose last norm differs; each is built if the case stores something of it.
    """
    meta, data = case.meta, case.data
    wanted = [name for name in meta["outputs"] if name != "grad.input"]
    outputs_of = {task: [n for n in wanted if re.fullmatch(OUTPUTS[task], n)] for task in OUTPUTS}
    probes = [name for name in wanted if name in {**spec.outputs, **spec.inputs}]
    known = {*probes, *(name for names in outputs_of.values() for name in names)}
    foreign = [name for name in wanted if name not in known]
    if foreign:
        raise UnsupportedCase(
            f"stores {', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}:"
            " neither maps nor logits of a model"
        )
    if meta.get("mode", "eval") != "eval":
        raise MalformedCase(f"mode must be 'eval', got {meta['mode']!r}")
    weights = {entry[0]: torch.from_numpy(fill_value(*entry)) for entry in meta["state_dict"]}
    dtype = getattr(torch, meta.get("dtype", "float32"))

    tasks = [task for task in OUTPUTS if outputs_of[task]]
    for task in tasks:
        model = spec.build(task)
        load_weights(model, spec.map_state_dict(weights, task))
        if task == "classification":
            _check_size(meta, model)
        model.to(device=case.device, dtype=dtype).eval()
        image = torch.from_numpy(make_input(meta["input_shape"], meta["input_key"]))
        image = image.to(device=case.device, dtype=dtype)
        # gradients are those of the logits, or of the last map where there are no logits
        if task == tasks[-1]:
            image.requires_grad_(True)
            with _probed(model.backbone, spec, probes) as probed:
                outputs = model(image)
            loss_of = "logits" if task == "classification" else max(outputs_of[task], key=_order)
            cotangent = torch.from_numpy(make_input(outputs[loss_of].shape, "cotangent"))
            (outputs[loss_of] * cotangent.to(image)).sum().backward()
            if "grad.input" in meta["outputs"]:
                comparison.tensor(data, "grad.input", image.grad)
            if "gradnorm.keys" in data:
                stored = zip(data["gradnorm.keys"].tolist(), data["gradnorm.values"].tolist())
                _compare_gradients(dict(stored), comparison, model, spec, task)
            for name in probes:
                comparison.tensor(data, name, probed.get(name))
        else:
            with torch.no_grad():
                outputs = model(image)
        for name in outputs_of[task]:
            comparison.tensor(data, name, outputs.get(name))


def _order(name: str) -> tuple[bool, str]:
    """Sort stages last, because the outputs of a neck are not part of any loss."""
    return name.startswith(("stage", "tokens")), name


@contextmanager
def _probed(
    backbone: nn.Module, spec: ModelSpec, names: Iterable[str]
) -> Iterator[dict[str, Tensor]]:
    """Collect outputs and inputs of modules inside the backbone by their names."""
    found: dict[str, Tensor] = {}
    handles = []
    for name in names:
        if name in spec.inputs:
            module = backbone.get_submodule(spec.inputs[name])

            def keep_input(module, inputs, name=name) -> None:
                found[name] = inputs[0]

            handles.append(module.register_forward_pre_hook(keep_input))
        else:
            module = backbone.get_submodule(spec.outputs[name])

            def keep_output(module, inputs, output, name=name) -> None:
                found[name] = output

            handles.append(module.register_forward_hook(keep_output))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def load_weights(model: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Load weights; raise MalformedCase if names or shapes differ from the model's."""
    # the grid of a position embedding is not among the weights that projects save
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("pos_grid")}
    own = {key: value.shape for key, value in state.items()}
    given = {key: value.shape for key, value in state_dict.items()}
    wrong_shapes = sorted(k for k in own.keys() & given.keys() if own[k] != given[k])
    unknown = sorted(given.keys() - own.keys())
    if not wrong_shapes:
        # layers after the last output are not built, and their weights are dropped
        unknown = sorted(model.load_state_dict(state_dict, strict=False).unexpected_keys)
    problems = {
        "missing in state_dict": sorted(own.keys() - given.keys()),
        "unknown to the model": unknown,
        "of another shape": wrong_shapes,
    }
    if any(problems.values()):
        found = [(what, keys) for what, keys in problems.items() if keys]
        text = (f"{len(keys)} key(s) {what} ({keys[0]}, ...)" for what, keys in found)
        raise MalformedCase("; ".join(text))


def _check_size(meta: dict, model: nn.Module) -> None:
    count = sum(p.numel() for p in model.parameters())
    for name in ("params", "num_params"):
        if meta.get(name, count) != count:
            raise MalformedCase(f"the model has {count} parameters, the case says {meta[name]}")


def _compare_gradients(
    norms: dict[str, float], comparison: Comparison, model: nn.Module, spec: ModelSpec, task: str
) -> None:
    """Compare the gradient norm of every stored parameter.

    A parameter of ours may hold several of the reference's, as parts ``name@i``.
    """
    parameters = dict(model.named_parameters())
    names = {key: spec.map_key(key, task) for key in norms}
    num_parts = Counter(name.partition("@")[0] for name in names.values() if name is not None)
    stored, got = {}, {}
    for key, value in norms.items():
        if names[key] is None and value == 0:  # not part of this task's model, and without effect
            continue
        name, _, part = (names[key] or "").partition("@")
        if name not in parameters:
            raise MalformedCase(f"gradnorm.keys names {key!r}, which is no parameter of the model")
        gradient = parameters[name].grad
        if gradient is not None and part:
            gradient = gradient.chunk(num_parts[name])[int(part)]
        stored[key] = value
        got[key] = 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient.double()))
    comparison.norms(stored, got)
