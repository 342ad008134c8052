"""Grad-CAM: which regions of an image support a class, from the last map of a backbone.

`Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization
<https://arxiv.org/abs/1610.02391>`_
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from torch import Tensor, nn

from mmvssm.models.backbones.plain import PlainBackbone

from .maps import recorded_map
from .models import default_scope

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ClassActivation:
    """Class activation map of an image.

    Attributes:
        label: Index of the class.
        score: Score of the class (see :func:`grad_cam`).
        values: ``(h, w)``: activations at the resolution of the backbone's last map, not negative.
        heat: ``(H, W)``: activations resized to the image, from 0 to 1.
        image: uint8 ``(H, W, 3)``: the image after the config's pipeline, in RGB.
    """

    label: int
    score: float
    values: Tensor
    heat: Tensor
    image: Tensor


def grad_cam(
    model: nn.Module, cfg: Config, image: str | Path, label: int | None = None
) -> ClassActivation:
    """Compute the Grad-CAM of a class.

    The map is the last stage's after its output norm. For plain backbones it consists of the patch
    tokens after the last layer, or after the layer before if only a class token is read at the end.
    Its channels are weighted by the mean gradients of a score: the logit of the class (classifier),
    the sum of its logits where it is the most likely class (segmentor), or the sum of the scores of
    its boxes (detector).

    Args:
        model: The model of the config, in evaluation mode (see :func:`load_model`).
        cfg: A config of mmpretrain, mmdet or mmseg.
        image: Path of an image.
        label: Index of the class; None for the most likely class.

    Raises:
        FileNotFoundError: If there is no such image.
        ValueError: If there is no such class, a detector does not find it, or the score does not
            depend on the map.
    """
    inputs, samples, shown = _prepare(model, cfg, image)
    backbone = model.backbone
    back = 0
    if isinstance(backbone, PlainBackbone):
        reads_token = backbone.out_type in ("cls_token", "last_token")
        back = int(reads_token or backbone.features[-1] == "mixer")
    with torch.enable_grad(), recorded_map(backbone, back, normed=True) as record:
        label, score = _SCORES[cfg.default_scope](model, inputs, samples, label)
        (gradient,) = torch.autograd.grad(score, record.output, allow_unused=True)
        if gradient is None or not record.to_map(gradient).any():
            raise ValueError(f"the score of class {label} does not depend on the last map")
        maps, gradients = record.to_map(record.output)[0], record.to_map(gradient)[0]
    values = (maps * gradients.mean((0, 1))).sum(-1).relu().detach().cpu().double()
    # the input may be padded to the right and bottom
    heat = F.interpolate(values[None, None], inputs.shape[2:], mode="bilinear")[0, 0]
    heat = heat[: shown.shape[0], : shown.shape[1]]
    return ClassActivation(label, score.item(), values, heat / heat.max().clamp(min=1e-30), shown)


def _prepare(model: nn.Module, cfg: Config, image: str | Path) -> tuple[Tensor, list[Any], Tensor]:
    """Return the input of the network, its data samples, and the image."""
    if not Path(image).is_file():
        raise FileNotFoundError(f"there is no image {str(image)!r}")
    dataset = cfg.test_dataloader.dataset
    while "pipeline" not in dataset:
        dataset = dataset.dataset
    steps = [step for step in dataset.pipeline if not step["type"].endswith("LoadAnnotations")]
    with default_scope(cfg):
        data = Compose(steps)(dict(img_path=str(image), img_id=0))
    if data is None:
        raise ValueError(f"{str(image)!r} cannot be read as an image")
    shown = data["inputs"].flip(0).permute(1, 2, 0)
    batch = model.data_preprocessor(pseudo_collate([data]), False)
    return batch["inputs"], batch["data_samples"], shown


def _checked(label: int | None, likeliest: int, count: int) -> int:
    if label is None:
        return likeliest
    if label not in range(count):
        raise ValueError(f"label must be from 0 to {count - 1}, got {label}")
    return label


def _score_of_image(
    model: nn.Module, inputs: Tensor, samples: list[Any], label: int | None
) -> tuple[int, Tensor]:
    logits = model(inputs, samples, mode="tensor")[0]
    label = _checked(label, int(logits.argmax()), len(logits))
    return label, logits[label]


def _score_of_pixels(
    model: nn.Module, inputs: Tensor, samples: list[Any], label: int | None
) -> tuple[int, Tensor]:
    logits = model.encode_decode(inputs, [sample.metainfo for sample in samples])[0]
    likeliest = logits.argmax(0)
    counts = likeliest.flatten().bincount(minlength=len(logits))
    label = _checked(label, int(counts.argmax()), len(logits))
    if not counts[label]:
        raise ValueError(f"no pixel is of class {label}")
    return label, logits[label][likeliest == label].sum()


def _score_of_boxes(
    model: nn.Module, inputs: Tensor, samples: list[Any], label: int | None
) -> tuple[int, Tensor]:
    found = model.predict(inputs, samples, rescale=False)[0].pred_instances
    if not len(found.scores):
        raise ValueError("the detector finds nothing")
    if label is None:
        label = int(found.labels[found.scores.argmax()])
    if label not in found.labels:
        there = ", ".join(map(str, sorted(set(found.labels.tolist()))))
        raise ValueError(f"the detector finds nothing of class {label}; it finds {there}")
    return label, found.scores[found.labels == label].sum()


_SCORES = {"mmpretrain": _score_of_image, "mmseg": _score_of_pixels, "mmdet": _score_of_boxes}


def draw_cam(found: ClassActivation, title: str = "") -> Figure:
    """Draw the image, and the activation map over it in red where the class is supported most.

    Args:
        found: Result of :func:`grad_cam`.
        title: Title of the figure.

    Returns:
        A matplotlib figure; needs matplotlib.
    """
    from matplotlib.figure import Figure

    height, width = found.heat.shape
    figure = Figure(figsize=(6, 3 * height / width + 0.6), layout="constrained", dpi=100)
    panels = figure.subplots(1, 2)
    for axes in panels:
        axes.imshow(found.image.numpy())
        axes.set_axis_off()
    panels[1].imshow(found.heat.numpy(), cmap="jet", alpha=0.5, vmin=0, vmax=1)
    panels[0].set_title("image", fontsize=8)
    panels[1].set_title(f"class {found.label}, score {found.score:.3g}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure
