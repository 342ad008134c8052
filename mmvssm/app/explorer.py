"""The results that the page shows: the prediction for an image, and insights into the network."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from PIL import Image
from torch import Tensor

from mmvssm.analysis import (
    animate_routes,
    draw_influence,
    draw_receptive_fields,
    influence,
    name_layers,
    receptive_field,
    record_scans,
)
from mmvssm.analysis.animation import encode_animation
from mmvssm.engine.cli import fail
from mmvssm.engine.predict import Predictor
from mmvssm.models.backbones.hierarchical import HierarchicalBackbone
from mmvssm.models.backbones.plain import PlainBackbone

#: Longer side of images for inspecting layers; it bounds memory and time of a click.
MAX_SIDE = 512
#: Longer side to which small pictures are enlarged.
_SHOWN_SIDE = 320
#: Columns of the table of results, by library.
COLUMNS = {
    "mmpretrain": ["class", "score"],
    "mmdet": ["class", "score", "box (x1, y1, x2, y2)"],
    "mmseg": ["class", "share of the pixels"],
}


@dataclass(frozen=True)
class Scene:
    """An image prepared for the backbone.

    Attributes:
        inputs: Input of the backbone ``(1, 3, H, W)``, reduced to sides of at most
            :data:`MAX_SIDE`.
        picture: The same image as uint8 ``(H, W, 3)`` in RGB.
        network_size: Height and width of the input in a prediction.
    """

    inputs: Tensor
    picture: np.ndarray
    network_size: tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """A layer of the backbone.

    Attributes:
        number: Index, counted from 0 through all stages.
        name: Name of the module.
        scans: Whether it scans along routes.
    """

    number: int
    name: str
    scans: bool


class Explorer:
    """A trained network, with methods that draw what it does.

    Args:
        cfg: A config of mmpretrain, mmdet or mmseg with a backbone of this package.
        checkpoint: A file, or ``mmvssm://NAME``; no code of it is run.
        config_path: Path of the config, for messages and titles.
        device: Device of the network.
    """

    def __init__(
        self, cfg: Config, checkpoint: str, *, config_path: str, device: str = "cpu"
    ) -> None:
        self.name = Path(config_path).stem
        self.predictor = Predictor(cfg, checkpoint, config_path=config_path, device=device)
        backbone = getattr(self.predictor.model, "backbone", None)
        if not isinstance(backbone, (HierarchicalBackbone, PlainBackbone)):
            fail(
                f"the model of {config_path!r} must have a backbone of this package, got"
                f" {type(backbone).__name__}"
            )
        self.backbone = backbone
        self.layers = [
            Layer(number, name, scans)
            for number, (name, scans) in enumerate(name_layers(backbone).items())
        ]

    @property
    def columns(self) -> list[str]:
        """Column titles of the rows of :meth:`predict`."""
        return COLUMNS[self.predictor.library]

    @property
    def num_tokens(self) -> int:
        """Number of class tokens of the backbone."""
        is_plain = isinstance(self.backbone, PlainBackbone)
        return len(self.backbone.cls_positions(1)) if is_plain else 0

    @property
    def first_layer(self) -> int:
        """Index of the first layer that scans."""
        return next(layer.number for layer in self.layers if layer.scans)

    def predict(self, path: str) -> tuple[np.ndarray, list[list[str]]]:
        """Predict an image.

        Args:
            path: The file.

        Returns:
            The prediction drawn into the image, uint8 ``(H, W, 3)`` in RGB, and the results as rows
            of text (see :attr:`columns`).

        Raises:
            OSError: If it cannot be read as an image.
        """
        image = self.predictor.read(path)
        (prediction,) = self.predictor.predict([(None, path, image)])
        drawn = prediction
        if self.predictor.library == "mmpretrain":
            # small images have no room for the text
            drawn = replace(prediction, image=enlarged(prediction.image))
        picture = enlarged(cv2.cvtColor(self.predictor.draw(drawn), cv2.COLOR_BGR2RGB))
        return picture, _rows(self.predictor.describe(prediction))

    def look(self, path: str) -> Scene:
        """Prepare an image as for a prediction, for the methods below.

        Raises:
            OSError: If it cannot be read as an image.
        """
        inputs, picture = self.predictor.network_input(path, self.predictor.read(path))
        height, width = inputs.shape[2:]
        scale = MAX_SIDE / max(height, width)
        if scale < 1:
            size = (max(round(height * scale), 1), max(round(width * scale), 1))
            inputs = F.interpolate(inputs, size, mode="bilinear", antialias=True)
            picture = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)
        return Scene(inputs, picture, (height, width))

    def routes(self, scene: Scene, layer: int) -> tuple[bytes, str]:
        """Animate the routes of a layer over an image.

        Returns:
            An animated WebP, and its caption.

        Raises:
            ValueError: If the layer has no scan that can be shown.
        """
        scans = record_scans(self.backbone, layer, scene.inputs)
        first = scans.routes[0]
        height, width = scans.size
        words = f"{len(first)} route{'s' if len(first) > 1 else ''} over {height}x{width} pixels"
        if scans.window_size is not None:
            words += (
                f", in {len(scans.routes)} windows of {scans.window_size}x{scans.window_size}, all"
                " at once"
            )
        return encode_animation(animate_routes(scans, scene.picture)), words

    def influence(
        self, scene: Scene, layer: int, query: Sequence[float] | int, kind: str = "influence"
    ) -> Image.Image:
        """Draw the contributions of the pixels of a layer to one of them.

        Args:
            scene: Result of :meth:`look`.
            layer: Index of the layer.
            query: Position of the pixel as fractions of height and width; or the index of a class
                token.
            kind: See :data:`mmvssm.analysis.KINDS`.

        Raises:
            ValueError: See :func:`mmvssm.analysis.influence`.
        """
        found = influence(self.backbone, scene.inputs, layer, query, kind)
        to = f"class token {query}" if isinstance(query, int) else "the pixel at the cross"
        title = f"layer {layer}, {to}: {kind}"
        figure = draw_influence(found, title, torch.from_numpy(scene.picture), columns=3)
        if not isinstance(query, int):
            height, width = scene.picture.shape[:2]
            at = query[1] * width - 0.5, query[0] * height - 0.5
            figure.axes[0].plot(*at, "+", color="red", markersize=12, markeredgewidth=2)
        return _rendered(figure)

    def receptive_field(self, scene: Scene) -> Image.Image:
        """Draw the effective receptive field of the centre of the last map.

        Raises:
            ValueError: If the gradients are not finite.
        """
        field = receptive_field(self.backbone, [scene.inputs])
        return _rendered(draw_receptive_fields([[field]], [self.name], [""]))


def enlarged(picture: np.ndarray) -> np.ndarray:
    """Enlarge a small picture ``(H, W, 3)`` by repeating its pixels."""
    factor = max(_SHOWN_SIDE // max(picture.shape[:2]), 1)
    return picture.repeat(factor, 0).repeat(factor, 1)


def _rows(found: dict) -> list[list[str]]:
    """Convert the result of :meth:`Predictor.describe` to rows of text."""
    if "labels" in found:
        return [[name, f"{score:.1%}"] for name, score in zip(found["classes"], found["scores"])]
    if "areas" in found:
        return [[area["class"], f"{area['share']:.1%}"] for area in found["areas"]]
    return [
        [part["class"], f"{part['score']:.1%}", ", ".join(f"{side:.0f}" for side in part["bbox"])]
        for part in found["instances"]
    ]


def _rendered(figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")
