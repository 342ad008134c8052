"""Reading and normalising images for the networks of configs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from mmengine.config import Config
from torch import Tensor

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Pixels:
    """Normalisation of pixels with values from 0 to 255; the default is that of ImageNet.

    Attributes:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        rgb: Whether channels are in RGB order, else BGR.
    """

    mean: Sequence[float] = (123.675, 116.28, 103.53)
    std: Sequence[float] = (58.395, 57.12, 57.375)
    rgb: bool = True

    @classmethod
    def of(cls, name: str) -> Pixels:
        """Return the normalisation of a config (``.py``), or ImageNet's for a variant's name."""
        if not name.endswith(".py"):
            return cls()
        cfg = Config.fromfile(name)
        own = {**cfg.get("data_preprocessor", {}), **cfg.model.get("data_preprocessor", {})}
        if own.get("mean") is None:
            return cls()
        return cls(own["mean"], own["std"], own.get("to_rgb", own.get("bgr_to_rgb", False)))

    def normed(self, image: Tensor) -> Tensor:
        """Normalise ``(H, W, 3)`` with values from 0 to 255 to ``(1, 3, H, W)``."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return ((image - mean) / std).permute(2, 0, 1)[None].float()


def read_image(path: str | Path, size: Sequence[int], rgb: bool = True) -> Tensor:
    """Read an image, scale it to cover ``size`` and crop the centre.

    Args:
        path: The file.
        size: Height and width.
        rgb: Order of the channels (see :class:`Pixels`).

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read as an image.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no image {str(path)!r}")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{str(path)!r} cannot be read as an image")
    height, width = size
    scale = max(height / image.shape[0], width / image.shape[1])
    if scale != 1:
        covering = round(image.shape[1] * scale), round(image.shape[0] * scale)
        image = cv2.resize(image, (max(covering[0], width), max(covering[1], height)))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    cut = torch.from_numpy(image[top : top + height, left : left + width].copy())
    return cut.flip(-1) if rgb else cut


def find_images(folder: str | Path) -> list[Path]:
    """Return the images below a folder, sorted by name.

    Raises:
        ValueError: If there are none.
    """
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"there are no images ({' '.join(SUFFIXES)}) below {str(folder)!r}")
    return found


def choose_images(folder: str | Path, count: int, seed: int = 0) -> list[Path]:
    """Return ``count`` random images of a folder, or all if there are fewer."""
    found = find_images(folder)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(found), generator=generator)[:count].tolist()
    return [found[i] for i in sorted(order)]


def images_of(paths: Iterable[Path], size: Sequence[int], pixels: Pixels) -> Iterator[Tensor]:
    """Yield normalised images ``(1, 3, H, W)``; see :func:`read_image`."""
    for path in paths:
        yield pixels.normed(read_image(path, size, pixels.rgb))


def noise_images(count: int, size: Sequence[int], seed: int = 0) -> Iterator[Tensor]:
    """Yield images ``(1, 3, H, W)`` of standard normal noise."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(1, 3, *size, generator=generator)
