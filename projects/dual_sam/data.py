"""Marine animal data: data set, gamma-corrected copies, masks, and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get
from mmseg.datasets import BaseSegDataset
from mmseg.models import SegDataPreProcessor
from mmseg.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from PIL import Image

try:
    import py_sod_metrics
except ImportError:
    py_sod_metrics = None


@DATASETS.register_module()
class MarineAnimalDataset(BaseSegDataset):
    """Images with grey animal masks, in the layout of MAS3K, RMAS, UFO120 and RUWI.

    ``data_root`` holds ``Image/NAME.jpg`` and ``Masks/NAME.png``. Gamma-corrected copies may be in
    another folder, which ``data_prefix`` then names as ``gamma_path``.

    Args:
        data_root: Folder of the data set.
        data_prefix: Names of its subfolders.
        **options: See mmseg's ``BaseSegDataset``.

    Raises:
        FileNotFoundError: If a folder or the image of a mask is missing.
    """

    METAINFO: ClassVar[dict] = dict(
        classes=("background", "animal"), palette=[[0, 0, 0], [255, 255, 255]]
    )

    def __init__(
        self, data_root: str, data_prefix: dict[str, str] | None = None, **options: Any
    ) -> None:
        folders = data_prefix or dict(img_path="Image", seg_map_path="Masks")
        super().__init__(data_root=data_root, data_prefix=folders, **options)

    def load_data_list(self) -> list[dict]:
        """List the masks with their images, sorted by name."""
        folders = {key: Path(folder) for key, folder in self.data_prefix.items()}
        for folder in folders.values():
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"there is no folder {str(folder)!r}: {self.data_root!r} must hold"
                    " Image/NAME.jpg and Masks/NAME.png, see projects/dual_sam/README.md"
                )
        masks = sorted(folders["seg_map_path"].glob(f"*{self.seg_map_suffix}"))
        if not masks:
            raise FileNotFoundError(
                f"there is no mask *{self.seg_map_suffix} in {str(folders['seg_map_path'])!r}"
            )
        return [self._sample(folders, mask) for mask in masks]

    def _sample(self, folders: dict[str, Path], mask: Path) -> dict:
        images = {
            key: folder / (mask.stem + self.img_suffix)
            for key, folder in folders.items()
            if key != "seg_map_path"
        }
        for image in images.values():
            if not image.is_file():
                raise FileNotFoundError(f"{str(mask)!r} has no image {str(image)!r}")
        return dict(
            {key: str(image) for key, image in images.items()},
            seg_map_path=str(mask),
            label_map=self.label_map,
            reduce_zero_label=self.reduce_zero_label,
            seg_fields=[],
        )


def gamma_exponent(image: np.ndarray) -> float:
    """Return the exponent that turns the mean of the grey image into one half.

    It is 1 for images that are all black or all white, which have no such exponent.

    Args:
        image: BGR, ``(H, W, 3)`` uint8.
    """
    mean = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).mean() / 255
    return math.log(0.5) / math.log(mean) if 0 < mean < 1 else 1.0


def gamma_correct(image: np.ndarray) -> np.ndarray:
    """Return the image with :func:`gamma_exponent` applied: dark images become brighter."""
    table = np.rint((np.arange(256) / 255) ** gamma_exponent(image) * 255).astype(np.uint8)
    return table[image]


@TRANSFORMS.register_module()
class AddGammaImage(BaseTransform):
    """Append the gamma-corrected copy to an image: from BGR to the channels RGBRGB, in float32.

    The copy is read from ``gamma_path`` if the data set has one; otherwise it is computed.
    """

    def transform(self, results: dict) -> dict:
        """Change ``img`` from ``(H, W, 3)`` uint8 to ``(H, W, 6)`` float32."""
        image = results["img"]
        if image.dtype != np.uint8 or image.shape[2:] != (3,):
            raise ValueError(
                f"img must be (H, W, 3) uint8, got {image.shape} {image.dtype}: put AddGammaImage"
                " right after LoadImageFromFile"
            )
        if "gamma_path" in results:
            gamma = mmcv.imfrombytes(get(results["gamma_path"]))
            if gamma.shape != image.shape:
                raise ValueError(
                    f"{results['gamma_path']!r} must have the size of its image,"
                    f" {image.shape[:2]}, got {gamma.shape[:2]}"
                )
        else:
            gamma = gamma_correct(image)
        channels = [image[..., ::-1], gamma[..., ::-1]]
        results["img"] = np.concatenate(channels, axis=2).astype(np.float32)
        return results


@MODELS.register_module()
class ImagePairPreProcessor(SegDataPreProcessor):
    """mmseg's preprocessor for two images in six channels.

    onedl-mmsegmentation's own accepts statistics of one or three channels only.

    Args:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        options: Further arguments of ``SegDataPreProcessor``.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], **options: Any) -> None:
        super().__init__(**options)
        self._enable_normalize = True
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)


@TRANSFORMS.register_module()
class LoadMask(BaseTransform):
    """Load a grey mask.

    Args:
        minimum: Smallest grey value of a pixel that is animal. None: animal is every value above
            half of the mask's largest, as in the published scores.
        binary: Whether the result is 0 and 1. Otherwise ``minimum`` is ignored and the grey values
            are kept, for a loss with ``mask_value=255``.
    """

    def __init__(self, minimum: int | None = None, binary: bool = True) -> None:
        self.minimum, self.binary = minimum, binary

    def transform(self, results: dict) -> dict:
        """Add ``gt_seg_map``, ``(H, W)`` uint8."""
        mask = mmcv.imfrombytes(get(results["seg_map_path"]), flag="grayscale", backend="pillow")
        if self.binary:
            largest = mask.max() + 1e-8
            animal = mask / largest > 0.5 if self.minimum is None else mask >= self.minimum
            mask = animal.astype(np.uint8)
        results["gt_seg_map"] = mask
        results["seg_fields"].append("gt_seg_map")
        return results


def score(
    prediction: np.ndarray, mask: np.ndarray, blank_is_full: bool = False
) -> dict[str, float]:
    """Return the five scores of one image.

    PySODMetrics computes MAE, S-alpha, the E-measure at the adaptive threshold and the weighted
    F-measure. mIoU is the IoU of the animals at the threshold 0.5.

    Args:
        prediction: ``(H, W)`` float64 in 0 to 1.
        mask: ``(H, W)`` bool.
        blank_is_full: Whether mIoU counts a prediction without a pixel above 0.5 as all animal, as
            the published scores do.

    Raises:
        ImportError: If PySODMetrics is not installed.
    """
    if py_sod_metrics is None:
        raise ImportError(
            "the scores need PySODMetrics, which is not installed:"
            " pip install -r projects/dual_sam/requirements.txt"
        )
    measures = {
        name: getattr(py_sod_metrics, name)()
        for name in ("Smeasure", "WeightedFmeasure", "Emeasure", "MAE")
    }
    for measure in measures.values():
        measure.step(prediction, mask, normalize=False)
    results = {name: measure.get_results() for name, measure in measures.items()}
    animal = prediction > 0.5
    if blank_is_full and not animal.any():
        animal = np.ones_like(mask)
    return {
        "mIoU": float(((animal & mask).sum() + 1e-5) / ((animal | mask).sum() + 1e-5)),
        "S-alpha": float(results["Smeasure"]["sm"]),
        "wF": float(results["WeightedFmeasure"]["wfm"]),
        "mE": float(results["Emeasure"]["em"]["adp"]),
        "MAE": float(results["MAE"]["mae"]),
    }


def rescale(prediction: np.ndarray, size: tuple[int, int], threshold: int | None) -> np.ndarray:
    """Return a prediction as it is scored: quantized to 8 bits, resized, stretched to 0..1.

    Args:
        prediction: Probabilities ``(h, w)``.
        size: Height and width of the mask.
        threshold: 8-bit value above which a pixel is animal, applied before the size changes.
    """
    grey = np.floor(prediction * 255 + 0.5).astype(np.uint8)
    if threshold is not None:
        grey = np.where(grey > threshold, 255, 0).astype(np.uint8)
    scaled = np.asarray(Image.fromarray(grey).resize(size[::-1]), dtype=np.float64)
    low, high = scaled.min(), scaled.max()
    return scaled / 255 if low == high else (scaled - low) / (high - low)


@METRICS.register_module()
class AnimalMetric(BaseMetric):
    """Scores of marine animal segmentation, means over the images.

    Args:
        threshold: See :func:`rescale`; None scores the probabilities themselves.
        blank_is_full: See :func:`score`.
        **options: See MMEngine's ``BaseMetric``.
    """

    def __init__(
        self, threshold: int | None = 65, blank_is_full: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.threshold, self.blank_is_full = threshold, blank_is_full

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Score ``probability`` of every sample against its ``gt_sem_seg``."""
        for sample in data_samples:
            mask = sample["gt_sem_seg"]["data"].squeeze(0).cpu().numpy()
            if mask.min() < 0 or mask.max() > 1:
                raise ValueError(
                    f"masks must hold 0 and 1, got {mask.min()} to {mask.max()}: load them with"
                    " the transform LoadMask"
                )
            probability = sample["probability"]["data"].squeeze(0).cpu().numpy()
            prediction = rescale(probability, mask.shape, self.threshold)
            self.results.append(score(prediction, mask.astype(bool), self.blank_is_full))

    def compute_metrics(self, results: list[dict[str, float]]) -> dict[str, float]:
        """Return the mean of each score, rounded to four digits."""
        return {name: round(float(np.mean([r[name] for r in results])), 4) for name in results[0]}
