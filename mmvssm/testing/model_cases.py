"""Golden cases of whole models: from the reference's description to our model."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from torch import Tensor, nn

from mmvssm.checkpoint import map_key, map_state_dict
from mmvssm.models import VMamba

from .compare import Comparison, MalformedCase, UnsupportedCase
from .recipe import fill_value, make_input

# The reference chooses the mixer by a string: a core, then suffixes.
CORES = {
    "v0": dict(gate=True, force_fp32=True),
    "v01": dict(force_fp32=True),
    "v05": dict(force_fp32=False),
    "v051d": dict(force_fp32=False, scan="unidi"),
    "v052d": dict(force_fp32=False, scan="bidi"),
    "v052dc": dict(force_fp32=False, scan="cascade"),
    "m0": dict(scalar_decay=True),
}
# other and older names of the same functions
CORE_SYNONYMS = {
    "v0seq": "v0",
    "v02": "v01",
    "v03": "v01",
    "v2": "v01",
    "v04": "v05",
    "v1": "v05",
    "v3": "v05",
    "v4": "v05",
    "v31d": "v051d",
    "v32d": "v052d",
    "v32dc": "v052dc",
}
SUFFIXES = {
    "noz": dict(gate=False),
    "nozact": dict(gate_act=False),
    "oact": dict(out_act=True),
    "no32": dict(force_fp32=False),
    "onnone": dict(out_norm="none"),
    "ondwconv3": dict(out_norm="dwconv3"),
    "oncnorm": dict(out_norm="cnorm"),
    "onsoftmax": dict(out_norm="softmax"),
    "onsigmoid": dict(out_norm="sigmoid"),
}
BROKEN_CORES = ("xv1a", "xv2a", "xv3a")
STEMS = {"v1": "patch", "v2": "conv"}
DOWNSAMPLES = {"v1": "merge", "v2": "conv2", "v3": "conv3"}


def read_forward_type(forward_type: str) -> dict:
    """Arguments of :class:`mmvssm.models.SS2D` for a string such as ``'v05_ondwconv3_noz'``.

    Args:
        forward_type: A core and suffixes in any order.

    Raises:
        MalformedCase: If a part is unknown, given twice, or contradicts another.
        UnsupportedCase: If the reference itself cannot run it.
    """
    core, *suffixes = forward_type.split("_")
    core = CORE_SYNONYMS.get(core, core)
    if core in BROKEN_CORES:
        raise UnsupportedCase(
            f"forward_type {forward_type!r}: core {core} has no working reference"
        )
    if core not in CORES:
        raise MalformedCase(f"forward_type {forward_type!r}: unknown core {core!r}")
    if core == "v0" and suffixes:
        raise MalformedCase(f"forward_type {forward_type!r}: this core takes no suffix")
    arguments = {"gate": True, **CORES[core]}
    given: set[str] = set()
    for suffix in suffixes:
        if suffix not in SUFFIXES:
            raise MalformedCase(f"forward_type {forward_type!r}: unknown suffix {suffix!r}")
        for name, value in SUFFIXES[suffix].items():
            if name in given:
                raise MalformedCase(f"forward_type {forward_type!r}: {name} is set twice")
            given.add(name)
            arguments[name] = value
    if core == "m0" and arguments["gate"]:
        raise UnsupportedCase(
            f"forward_type {forward_type!r}: m0 with a gate has no working reference"
        )
    return arguments


def read_vmamba(build: dict) -> dict:
    """Arguments of :class:`mmvssm.models.VMamba` for the reference's description of a model.

    Args:
        build: The case's ``build``: the options of the reference in its own words.

    Raises:
        KeyError: If a required option is missing.
        MalformedCase: If an option has an unknown value.
        UnsupportedCase: If it is a variant that VMamba does not build.
    """
    dims = list(build["dims"])
    if build.get("norm_eps", 1e-5) != 1e-5:
        raise UnsupportedCase(f"norm_eps {build['norm_eps']}: norms have 1e-5")
    if build.get("post_norm"):
        raise UnsupportedCase("post_norm: blocks are pre-norm")
    mixer = None
    if build["ssm_ratio"] > 0:
        mixer = dict(
            read_forward_type(build["forward_type"]),
            d_state=build["d_state"],
            ssm_ratio=build["ssm_ratio"],
            dt_rank=_read_dt_rank(build.get("dt_rank"), dims),
            d_conv=build.get("conv_kernel", 3) or 0,
            conv_bias=build.get("conv_bias", True),
            act=build.get("ssm_act", "silu"),
            ssm_init=build.get("ssm_init", "v0"),
        )
    arch = dict(
        embed_dims=dims,
        depths=build["depths"],
        stem=_choice("patch_embed", build["patch_embed"], STEMS),
        downsample=_choice("downsample", build["downsample"], DOWNSAMPLES),
        patch_size=build.get("patch_size", 4),
        patch_norm=build.get("patch_norm", True),
        norm=build.get("norm_layer", "ln"),
        mlp_ratio=build.get("mlp_ratio", 0.0),
        mlp_act=build.get("mlp_act", "gelu"),
        gated_mlp=build.get("gmlp", False),
        pos_embed=bool(build.get("pos_embed", False)),
        mixer=mixer,
    )
    return dict(
        arch=arch,
        in_channels=build.get("in_chans", 3),
        odd_size="crop" if str(build.get("odd_size", "")).startswith("crop") else "pad",
        img_size=build.get("img_size", 224),
        drop_path_rate=build.get("drop_path_rate", 0.0),
    )


def _choice(name: str, value: str, choices: dict[str, str]) -> str:
    if value not in choices:
        raise MalformedCase(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return choices[value]


def _read_dt_rank(ranks: int | str | list[int] | None, dims: list[int]) -> int | None:
    if isinstance(ranks, int):
        return ranks
    if ranks in (None, "auto") or ranks == [math.ceil(dim / 16) for dim in dims]:
        return None
    if len(set(ranks)) > 1:
        raise UnsupportedCase(
            f"dt_rank {ranks}: neither ceil(width / 16) nor one rank for all stages"
        )
    return ranks[0]


#: Families that are built, with the backbone and the reader of its description.
FAMILIES = {"vmamba": (VMamba, read_vmamba)}


class Classifier(nn.Module):
    """Backbone, mean over the pixels of its last map, linear head."""

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.ModuleDict({"fc": nn.Linear(backbone.embed_dims[-1], num_classes)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``(B, C, H, W)`` -> ``pooled (B, C')`` and ``logits (B, num_classes)``."""
        pooled = self.backbone(x)[-1].mean((2, 3))
        return {"pooled": pooled, "logits": self.head["fc"](pooled)}


class Dense(nn.Module):
    """Backbone whose maps all pass their own norm."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``(B, C, H, W)`` -> ``stage0`` ... , each ``(B, C_i, H_i, W_i)``."""
        return {f"stage{i}": out for i, out in enumerate(self.backbone(x))}


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
    if family not in FAMILIES:
        raise UnsupportedCase(f"family {family!r} is not built; built are {', '.join(FAMILIES)}")
    wanted = [name for name in meta["outputs"] if name != "grad.input"]
    foreign = [name for name in wanted if not re.fullmatch(r"stage\d|pooled|logits", name)]
    if foreign:
        raise UnsupportedCase(
            f"stores {', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}:"
            " neither maps nor logits of a model"
        )
    if meta.get("mode", "eval") != "eval":
        raise MalformedCase(f"mode must be 'eval', got {meta['mode']!r}")
    backbone, read = FAMILIES[family]
    options = read(meta["build"])
    weights = {
        key: torch.from_numpy(fill_value(key, shape, dtype))
        for key, shape, dtype in meta["state_dict"]
    }
    dtype = getattr(torch, meta.get("dtype", "float32"))

    tasks = []
    if any(name.startswith("stage") for name in wanted):
        tasks.append("dense")
    if {"pooled", "logits"} & set(wanted):
        tasks.append("classification")
    for task in tasks:
        if task == "dense":
            model = Dense(backbone(**options))
        else:
            last = len(options["arch"]["depths"]) - 1
            model = Classifier(
                backbone(**options, out_indices=(last,)), meta["build"]["num_classes"]
            )
        _load(model, map_state_dict(weights, family, task))
        if task == "classification":
            _compare_size(meta, model)
        model.to(device=device, dtype=dtype).eval()
        image = torch.from_numpy(make_input(meta["input_shape"], meta["input_key"]))
        image = image.to(device=device, dtype=dtype)
        # gradients are those of the logits, or of the last map where there are no logits
        if task == tasks[-1]:
            image.requires_grad_(True)
            outputs = model(image)
            loss_of = "logits" if task == "classification" else max(outputs)
            cotangent = torch.from_numpy(make_input(outputs[loss_of].shape, "cotangent"))
            (outputs[loss_of] * cotangent.to(image)).sum().backward()
            _compare_gradients(meta, data, comparison, model, image, family, task)
        else:
            with torch.no_grad():
                outputs = model(image)
        for name in wanted:
            if name.startswith("stage") == (task == "dense"):
                comparison.tensor(data, name, outputs.get(name))


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
    stored, got = {}, {}
    for key, value in zip(data["gradnorm.keys"].tolist(), data["gradnorm.values"].tolist()):
        parameter = parameters.get(map_key(key, family, task))
        if parameter is None:
            raise MalformedCase(f"gradnorm.keys names {key!r}, which is no parameter of the model")
        stored[key] = value
        gradient = parameter.grad
        got[key] = 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient.double()))
    comparison.norms(stored, got)
