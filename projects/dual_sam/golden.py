"""Readers of Dual-SAM's golden cases, for ``tools/verify_golden.py CASES --import``.

The tolerances are those of the cases' specification, unless ``--tol`` sets another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from verifier import (
    Case,
    Comparison,
    MalformedCase,
    Tolerance,
    UnsupportedCase,
    fill_value,
    make_input,
    register_reader,
)

from . import data
from .connectivity import agreement, connectivity, connectivity_losses, pseudo_weight, vote
from .network import CROSS_HEADS, SELF_HEADS
from .segmentor import DualSAM
from .weights import key_to_ours

BRANCHES = ("image", "gamma")
#: Fields of ``build`` of which only one value is supported.
FIXED = dict(
    patch_size=16,
    window_size=14,
    prompt_self_heads=SELF_HEADS,
    prompt_cross_heads=CROSS_HEADS,
    prompt_mlp_ratio=4,
)
#: Largest relative errors by prefix of the name, in evaluation and in training mode.
TOLERANCES = {"prompt": (1e-6, 1e-6), "grad.": (5e-5, 5e-5), "gradnorm": (1e-4, 5e-4)}
OTHERS = (1e-5, 1e-5)


def set_tolerance(case: Case, comparison: Comparison, name: str, given: Tolerance) -> float:
    """Set the tolerance of one value on the CPU, unless the user has set one, and return it."""
    if case.device == "cpu" and given in map(Tolerance.of_backend, ("torch", "auto")):
        found = [pair for start, pair in TOLERANCES.items() if name.startswith(start)]
        limit = (found or [OTHERS])[0][case.meta.get("mode") == "train"]
        comparison.tolerance = Tolerance(limit, limit)
    return comparison.tolerance.tensor


def compare_numbers(
    comparison: Comparison, limit: float, stored: Mapping[str, float], got: Mapping[str, float]
) -> None:
    """Compare numbers by relative error, or by absolute error where the stored value is 0."""
    for name, value in stored.items():
        error = abs(got[name] - value) / (abs(value) or 1)
        comparison.errors.append((name, float(error), limit))


def build_network(build: Mapping) -> DualSAM:
    """Build the network that a case describes, with its gates as parameters."""
    for name, value in FIXED.items():
        if build[name] != value:
            raise UnsupportedCase(f"{name} {build[name]}: only {value} is built")
    width = build["embed_dim"]
    arch = dict(
        embed_dims=width,
        num_layers=build["depth"],
        num_heads=build["num_heads"],
        feedforward_channels=int(width * build["mlp_ratio"]),
        global_attn_indexes=build["global_attn_indexes"],
    )
    backbone = dict(
        type="DualViTSAM",
        arch=arch,
        img_size=build["image_size"],
        neck_channels=build["neck_channels"],
        lora_rank=build["lora_rank"],
        adapter_reduction=build["adapter_reduction"],
        scrambled_values=build["scrambled_values"],
        train_gates=True,
    )
    return DualSAM(
        backbone,
        decoder_widths=build["decoder_channels"][::-1],
        crossed_skips=build["crossed_skips"],
    )


def load(network: DualSAM, case: Case) -> None:
    """Load the weights and gates of a case into the network."""
    weights = {
        key_to_ours(entry[0]): torch.from_numpy(np.asarray(fill_value(*entry)))
        for entry in case.meta["state_dict"]
    }
    gates = case.meta["build"]["gates"]
    weights["backbone.prompts.image_gates"] = torch.tensor(gates["gated"])
    weights["backbone.prompts.gamma_gates"] = torch.tensor(gates["gated1"])
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise MalformedCase(str(error)) from None


@contextmanager
def probed(network: DualSAM) -> Iterator[dict[str, Tensor]]:
    """Collect intermediate results under the names that the cases use."""
    found: dict[str, Tensor] = {}
    backbone, handles = network.backbone, []

    def keep(module, names, split):
        def hook(module, inputs, outputs):
            found.update(zip(names, split(outputs)))

        handles.append(module.register_forward_hook(hook))

    for g, depth in enumerate(backbone.global_attn_indexes):
        halves = partial(torch.chunk, chunks=2)
        keep(backbone.layers[depth], [f"tokens.{branch}.{g}" for branch in BRANCHES], halves)
        names = [f"prompt.{g}", f"prompt_image.{g}", f"prompt_gamma.{g}"]
        keep(backbone.prompts.blocks[g], names, iter)
    keep(backbone.channel_reduction, [f"neck.{branch}" for branch in BRANCHES], halves)
    for branch, decoder in zip(BRANCHES, network.decoders):
        for j, fusion in enumerate(reversed(decoder.fusions)):
            keep(fusion, [f"decode.{branch}.{j}"], lambda output: [output])
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def blocks(height: int, width: int, side: int, mask_key: str, noise_key: str) -> np.ndarray:
    """Return the bool mask of noisy squares that the cases are made of."""
    coarse = make_input((-(-height // side), -(-width // side)), mask_key) > 0
    squares = coarse.repeat(side, 0).repeat(side, 1)[:height, :width]
    return squares ^ (make_input((height, width), noise_key) > 2)


@register_reader("dual_sam")
def read_network(case: Case) -> dict:
    """Read the case of a complete network."""
    if "build" not in case.meta:
        raise UnsupportedCase(f"dual_sam case {case.meta['case']!r} is not built")
    return {"": partial(compare_network, case)}


def compare_network(case: Case, comparison: Comparison) -> None:
    """Run one forward and backward pass, and compare everything that the case stores."""
    meta, stored, given = case.meta, case.data, comparison.tolerance
    if meta["mode"] not in ("eval", "train"):
        raise MalformedCase(f"mode must be 'eval' or 'train', got {meta['mode']!r}")
    network = build_network(meta["build"])
    load(network, case)
    network.to(case.device).train(meta["mode"] == "train")
    images = {
        name: torch.from_numpy(make_input(meta["input_shape"], key)).to(case.device)
        for name, key in meta["input_keys"].items()
    }
    for image in images.values():
        image.requires_grad_()

    with probed(network) as outputs:
        logits = dict(zip(BRANCHES, network._forward(torch.cat([*images.values()], dim=1))))
    for branch, scales in logits.items():
        outputs.update({f"conn.{branch}.{j}": x for j, x in enumerate(scales)})
        outputs[f"mask.{branch}"] = vote(scales[0].sigmoid())
    masks = torch.from_numpy(_batch_mask(meta)).to(case.device)
    losses = connectivity_losses(*logits.values(), masks)
    weight = pseudo_weight(meta["epoch"] / meta["epochs"])
    total = sum(weight * v if "pseudo" in k else v for k, v in losses.items())
    total.backward()
    outputs.update({f"grad.{name}": image.grad for name, image in images.items()})
    outputs.update({f"after.{k}": network.state_dict()[key_to_ours(k)] for k in _running(meta)})

    for name in meta["outputs"]:
        if name not in outputs:
            raise MalformedCase(f"stores {name!r}, which the network does not return")
        limit = set_tolerance(case, comparison, name, given)
        comparison.tensor(stored, name, outputs[name])
        if name in meta["sums"]:
            norm = torch.linalg.vector_norm(outputs[name].detach().double())
            numbers = {f"norm of {name}": meta["sums"][name][1]}
            compare_numbers(comparison, limit, numbers, {f"norm of {name}": float(norm)})
    limit = set_tolerance(case, comparison, "loss", given)
    numbers = {**losses, "loss_total": total, "pseudo_weight": weight}
    expected = {**meta["losses"], **{k: meta[k] for k in ("loss_total", "pseudo_weight")}}
    compare_numbers(
        comparison,
        limit,
        expected,
        {k: float(torch.as_tensor(v).detach()) for k, v in numbers.items()},
    )
    parameters = dict(network.named_parameters())
    counts = (parameters.values(), [p for p in parameters.values() if p.requires_grad])
    for name, found in zip(("params", "trainable_params"), counts):
        comparison.count(name, abs(sum(p.numel() for p in found) - meta[name]))
    set_tolerance(case, comparison, "gradnorm", given)
    norms = dict(zip(stored["gradnorm.keys"].tolist(), stored["gradnorm.values"].tolist()))
    norms |= dict.fromkeys(meta["zero_grad_params"], 0.0)
    comparison.norms(norms, {key: _gradient_norm(parameters, key) for key in norms})


def _batch_mask(meta: Mapping) -> np.ndarray:
    batch, _, height, width = meta["input_shape"]
    coarse = make_input((batch, height // 8, width // 8), meta["mask_keys"]["mask"]) > 0
    noise = make_input((batch, height, width), meta["mask_keys"]["noise"]) > 2
    return (coarse.repeat(8, 1).repeat(8, 2) ^ noise).astype(np.float32)


def _running(meta: Mapping) -> list[str]:
    return [n.removeprefix("after.") for n in meta["outputs"] if n.startswith("after.")]


def _gradient_norm(parameters: Mapping[str, Tensor], key: str) -> float:
    for theirs, ours in (("gated.", "image_gates"), ("gated1.", "gamma_gates")):
        if key.startswith(f"global_adapter.{theirs}"):
            gradient = parameters[f"backbone.prompts.{ours}"].grad[int(key.rpartition(".")[2])]
            return abs(float(gradient))
    return float(torch.linalg.vector_norm(parameters[key_to_ours(key)].grad.double()))


def function_reader(kind: str):
    """Register the decorated check for each case in a file of function cases."""

    def register(check):
        def read(case: Case) -> dict:
            return {
                part["name"]: partial(check, case, part, f"dual_sam/{kind}/{part['name']}")
                for part in case.meta["cases"]
            }

        register_reader(f"dual_sam/{kind}")(read)
        return check

    return register


def _masks(part: Mapping, key: str) -> np.ndarray:
    shape = (part["height"], part["width"])
    keys = [(f"{key}/{b}/mask", f"{key}/{b}/mask_noise") for b in range(part["batch"])]
    masks = np.stack([blocks(*shape, 4, *pair) for pair in keys]).astype(np.float32)
    if part.get("fractional"):
        masks *= np.clip(np.abs(make_input(masks.shape, f"{key}/scale")), 0, 1)
    return masks


def _compare(case: Case, part: Mapping, comparison: Comparison, values: Mapping) -> None:
    given = comparison.tolerance
    for name in part["outputs"]:
        set_tolerance(case, comparison, name, given)
        comparison.tensor(case.data, f"{part['name']}/{name}", values[name])


def _differing(case: Case, name: str, value: Tensor) -> int:
    got = np.asarray(value).reshape(-1)[case.data[f"{name}.index"]]
    return int((got != case.data[name]).sum())


@function_reader("connectivity")
def compare_connectivity(case: Case, part: dict, key: str, comparison: Comparison) -> None:
    """Compare targets bit for bit, and votes within the tolerance."""
    mask = torch.from_numpy(_masks(part, key))
    target = connectivity(mask)
    logits = torch.from_numpy(make_input(target.shape, f"{key}/logits"))
    roundtrip = vote(torch.where(target > 0.5, 30.0, -30.0).sigmoid())[:, 0]
    values = dict(mask_in=mask, conn=target, roundtrip=roundtrip)
    values["vote_mask"] = vote((3 * logits).sigmoid())[:, 0]
    shape = tuple(case.data[f"{part['name']}/vote_mask.shape"].tolist())
    values |= {k: values[k].reshape(shape) for k in ("vote_mask", "roundtrip")}
    _compare(case, part, comparison, values)
    for name in ("mask_in", "conn"):
        comparison.count(f"{name}, bits", _differing(case, f"{part['name']}/{name}", values[name]))
    lost = int(((roundtrip > 0.5) != (mask > 0.5)).sum())
    comparison.count("roundtrip_mismatches", abs(lost - part["roundtrip_mismatches"]))


@function_reader("losses")
def compare_losses(case: Case, part: dict, key: str, comparison: Comparison) -> None:
    """Compare the losses of one scale, their gradients and the products of the votes."""
    mask = torch.from_numpy(_masks(part, key))
    shape = (*mask.shape[:1], 8, *mask.shape[1:])
    logits = {
        name: part["scale"] * torch.from_numpy(make_input(shape, f"{key}/{name}"))
        for name in BRANCHES
    }
    for x in logits.values():
        x.requires_grad_()
    losses = connectivity_losses(*([x] for x in logits.values()), mask)
    weight = pseudo_weight(part["epoch"] / part["epochs"])
    total = sum(weight * v if "pseudo" in k else v for k, v in losses.items())
    total.backward()
    numbers = {k.removeprefix("loss_")[:-2].replace(".", "_"): v for k, v in losses.items()}
    numbers |= dict(total=total, pseudo_weight=weight)
    expected = {**part["losses"], "pseudo_weight": part["pseudo_weight"]}
    limit = set_tolerance(case, comparison, "loss", comparison.tolerance)
    compare_numbers(
        comparison,
        limit,
        expected,
        {k: float(torch.as_tensor(v).detach()) for k, v in numbers.items()},
    )
    values = {f"grad.{name}": x.grad for name, x in logits.items()}
    values["vote_train"] = agreement(logits["image"].sigmoid())
    _compare(case, part, comparison, values)


@function_reader("gamma")
def compare_gamma(case: Case, part: dict, key: str, comparison: Comparison) -> None:
    """Compare gamma-corrected images bit for bit."""
    noise = make_input((part["height"], part["width"], 3), f"{key}/image")
    image = np.clip(np.round(part["mean"] + part["std"] * noise), 0, 255).astype(np.uint8)
    images = dict(image=image, gamma_image=data.gamma_correct(image))
    for name in part["outputs"]:
        value = torch.from_numpy(images[name])
        comparison.count(name, _differing(case, f"{part['name']}/{name}", value))
    exponent = dict(gamma=data.gamma_exponent(image))
    limit = set_tolerance(case, comparison, "gamma", comparison.tolerance)
    compare_numbers(comparison, limit, dict(gamma=part["gamma"]), exponent)


#: Scores whose definitions agree, by their names in the cases. PySODMetrics' S-measure divides
#: by one pixel less, and the other scores are not computed here.
SCORES = dict(mae="MAE", em="mE", wfm="wF", iou="mIoU")


@function_reader("metrics")
def compare_metrics(case: Case, part: dict, key: str, comparison: Comparison) -> None:
    """Compare the scores whose definitions agree."""
    if data.py_sod_metrics is None:
        raise UnsupportedCase(
            "PySODMetrics is not installed: pip install -r projects/dual_sam/requirements.txt"
        )
    prediction, mask = (case.data[f"{part['name']}/{name}"] for name in ("pred", "gt"))
    found = data.score(prediction, mask.astype(bool), blank_is_full=True)
    expected = {name: part["values"][name] for name in SCORES}
    limit = set_tolerance(case, comparison, "score", comparison.tolerance)
    compare_numbers(comparison, limit, expected, {k: found[v] for k, v in SCORES.items()})
