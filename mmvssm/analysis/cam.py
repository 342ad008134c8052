"""Grad-CAM: which places of an image a class rests on, by the last map of a backbone.

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
    """Where in an image a class is seen.

    Attributes:
        label: Index of the class.
        score: Its score, see :func:`grad_cam`.
        values: ``(h, w)``: the map, of the backbone's last one, not negative.
        heat: ``(H, W)``: the same over the image, from 0 to 1.
        image: uint8 ``(H, W, 3)``: the image as the config's pipeline gives it, RGB.
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

    The map is that of the last stage behind its output norm; for tokens, that of the patch tokens
    behind the last layer, or the one before where a class token alone is read behind the last. Its
    channels are weighted by their mean gradients of the score: a classifier's is the class's logit,
    a segmentor's the sum of its logits where it is the likeliest class, a detector's the sum of the
    scores of its boxes.

    Args:
        model: A network of the config, in evaluation mode, see :func:`load_model`.
        cfg: A config of mmpretrain, mmdet or mmseg.
        image: Path of an image.
        label: Index of the class; None for the likeliest.

    Raises:
        ValueError: If there is no such class, a detector finds none, or the score does not depend
            on the map.
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
    """Return the input of the network, the samples that go with it, and the image."""
    if not Path(image).is_file():
        raise FileNotFoundError(f"there is no image {str(image)!r}")
    dataset = cfg.test_dataloader.dataset
    while "pipeline" not in dataset:
        dataset = dataset.dataset
    steps = [step for step in dataset.pipeline if not step["type"].endswith("LoadAnnotations")]
    with default_scope(cfg):
        data = Compose(steps)(dict(img_path=str(image), img_id=0))
    if data is None:
        raise ValueError(f"{str(image)!r} is no image that can be read")
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
    """Draw the image, and the map over it: the redder, the more the class rests on a place.

    Args:
        found: What :func:`grad_cam` gives.
        title: Headline of the picture.

    Returns:
        A figure of matplotlib, which must be installed, to be saved by its ``savefig``.
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
