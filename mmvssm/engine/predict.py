"""Predictions of classifiers, detectors and segmentors for images from any source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import BaseModel
from mmengine.registry import MODELS, VISUALIZERS
from mmengine.structures import BaseDataElement
from mmengine.visualization import BaseVisBackend
from torch import Tensor

from .cli import fail, leaf_datasets, library_of, type_name
from .loading import load_model
from .tta import tta_model, tta_pipeline

#: Visualizers by library.
VISUALIZERS_OF = {
    "mmpretrain": "mmpretrain.UniversalVisualizer",
    "mmdet": "mmdet.DetLocalVisualizer",
    "mmseg": "mmseg.SegLocalVisualizer",
}
#: Number of classes in a classifier's result.
TOP = 5


@dataclass
class Prediction:
    """The prediction of a model for an image.

    Attributes:
        key: Key that was given with the image.
        image: The image, uint8 ``(H, W, 3)`` in BGR.
        sample: The library's own data sample, on the CPU.
    """

    key: Any
    image: np.ndarray
    sample: BaseDataElement


class Predictor:
    """A model with the pipeline that prepares its images and the visualizer of its predictions.

    Args:
        cfg: A config of mmpretrain, mmdet or mmseg with a test pipeline that begins by loading an
            image from a file.
        checkpoint: Its checkpoint: a file, or ``mmvssm://NAME``; no code of it is run.
        config_path: Path of the config, for messages.
        device: Device of the model.
        tta: Whether to average over augmented views (see :mod:`mmvssm.engine.tta`).
        batch_size: Largest number of images in a batch.
        score_thr: Detector instances with scores of at most this are dropped.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        *,
        config_path: str,
        device: str = "cpu",
        tta: bool = False,
        batch_size: int = 1,
        score_thr: float = 0.3,
    ) -> None:
        self.library = library_of(cfg, "prediction")
        self.batch_size, self.score_thr = batch_size, score_thr
        steps = _test_pipeline(cfg, config_path)
        if tta:
            steps = tta_pipeline(cfg, config_path, steps)
        load, *steps = _without_annotations(steps)
        if not type_name(load).startswith("LoadImage"):
            fail(
                "prediction needs a test pipeline that begins with LoadImageFromFile, but that of"
                f" {config_path!r} begins with {type_name(load)}"
            )
        model = load_model(cfg, checkpoint, "prediction")
        self.meta: dict[str, Any] = model.dataset_meta
        wrapped = MODELS.build(dict(**tta_model(cfg), module=model)) if tta else model
        self.model: BaseModel = wrapped.to(device).eval()
        self.to_float32 = load.get("to_float32", False)
        self._load, self._prepare = Compose([load]), Compose(steps)
        self._kept = _KeptImage()
        # the registry would keep one instance for the entire program
        self.visualizer = VISUALIZERS.get(VISUALIZERS_OF[self.library])(vis_backends=[self._kept])
        self.visualizer.dataset_meta = self.meta

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes; None if neither the checkpoint nor the config has them."""
        names = self.meta.get("classes")
        return None if names is None else [str(name) for name in names]

    def read(self, path: str) -> np.ndarray:
        """Read an image as the pipeline does: ``(H, W, 3)`` in BGR.

        Raises:
            OSError: If it cannot be read as an image.
        """
        try:
            sample = self._load(dict(img_path=path))
        except OSError:
            raise
        except Exception as error:  # raised by a decoder, or because it returned None
            raise OSError(f"it cannot be read as an image ({type(error).__name__})") from error
        if sample is None or sample["img"] is None or not sample["img"].size:
            raise OSError("it cannot be read as an image")
        return sample["img"]

    def predict(self, images: Iterable[tuple[Any, str, np.ndarray]]) -> Iterator[Prediction]:
        """Predict images in order.

        Only consecutive images of the same size after the pipeline share a batch. As nothing is
        padded, predictions do not depend on the other images.

        Args:
            images: A key of any kind, a name, and the image ``(H, W, 3)`` in BGR.
        """
        pending: list[tuple[Any, np.ndarray, dict]] = []
        shape: object = None
        for number, (key, name, image) in enumerate(images):
            sample = self._sample(number, name, image)
            own = _shape(sample["inputs"])
            if pending and (own != shape or len(pending) == self.batch_size):
                yield from self._predict_batch(pending)
                pending = []
            shape = own
            pending.append((key, image, sample))
        if pending:
            yield from self._predict_batch(pending)

    def network_input(self, name: str, image: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Prepare an image for the backbone as for a prediction, but without augmented views.

        Args:
            name: Name of the sample.
            image: ``(H, W, 3)`` in BGR.

        Returns:
            The input, ``(1, 3, H', W')`` on the device of the model, and the same picture as uint8
            ``(H', W', 3)`` in RGB, black where the input is padded.
        """
        sample = self._sample(0, name, image)
        picture = sample["inputs"].flip(0)
        inputs = self.model.data_preprocessor(pseudo_collate([sample]), False)["inputs"]
        height, width = inputs.shape[2:]
        picture = F.pad(picture, (0, width - picture.shape[2], 0, height - picture.shape[1]))
        return inputs, picture.permute(1, 2, 0).clamp(0, 255).byte().numpy()

    def _sample(self, number: int, name: str, image: np.ndarray) -> dict[str, Any]:
        """Run an image through the pipeline."""
        return self._prepare(
            dict(
                img=image.astype(np.float32) if self.to_float32 else image.copy(),
                img_path=name,
                img_id=number,
                img_shape=image.shape[:2],
                ori_shape=image.shape[:2],
            )
        )

    def _predict_batch(self, pending: list[tuple[Any, np.ndarray, dict]]) -> Iterator[Prediction]:
        keys, images, samples = zip(*pending)
        with torch.no_grad():
            found = self.model.test_step(pseudo_collate(list(samples)))
        for key, image, sample in zip(keys, images, found):
            yield Prediction(key, image.clip(0, 255).astype(np.uint8), sample.cpu())

    def draw(self, prediction: Prediction) -> np.ndarray:
        """Draw a prediction into its image with the library's visualizer: uint8 BGR."""
        image = cv2.cvtColor(prediction.image, cv2.COLOR_BGR2RGB)
        sample = prediction.sample
        if self.library == "mmpretrain":
            self.visualizer.visualize_cls(image, sample, draw_gt=False)
        elif self.library == "mmdet":
            self.visualizer.add_datasample(
                "", image, sample, draw_gt=False, pred_score_thr=self.score_thr
            )
        else:
            self.visualizer.add_datasample("", image, sample, draw_gt=False)
        return cv2.cvtColor(self._kept.image, cv2.COLOR_RGB2BGR)

    def describe(self, prediction: Prediction) -> dict[str, Any]:
        """Return a prediction as plain values for JSON, without the map of :meth:`label_map`.

        Returns:
            For a classifier, ``labels``, ``classes`` and ``scores``, most likely first. For a
            detector, ``instances``, a list of ``label``, ``class``, ``score``, ``bbox``
            (x1, y1, x2, y2 in pixels of the image) and, if it predicts masks, ``mask`` (COCO's
            compressed RLE). For a segmentor, ``areas``, a list of ``label``, ``class`` and
            ``share`` of the image's pixels, largest first.
        """
        describe: dict[str, Callable[[BaseDataElement], dict[str, Any]]] = {
            "mmpretrain": self._describe_labels,
            "mmdet": self._describe_instances,
            "mmseg": self._describe_areas,
        }
        return describe[self.library](prediction.sample)

    def label_map(self, prediction: Prediction) -> np.ndarray | None:
        """Return a segmentor's labels ``(H, W)``, uint8 or uint16; None for other models."""
        if self.library != "mmseg":
            return None
        labels = prediction.sample.pred_sem_seg.data[0].numpy()
        return labels.astype(np.uint8 if labels.max() < 256 else np.uint16)

    def _class(self, label: int) -> str:
        classes = self.classes
        return classes[label] if classes and label < len(classes) else str(label)

    def _describe_labels(self, sample: Any) -> dict[str, Any]:
        scores = sample.pred_score
        best = scores.topk(min(TOP, len(scores)))
        labels = best.indices.tolist()
        return dict(
            labels=labels,
            classes=[self._class(label) for label in labels],
            scores=[round(score, 6) for score in best.values.tolist()],
        )

    def _describe_instances(self, sample: Any) -> dict[str, Any]:
        found = sample.pred_instances
        found = found[found.scores > self.score_thr]
        instances = []
        for i in range(len(found)):
            label = int(found.labels[i])
            instance: dict[str, Any] = dict(
                label=label,
                score=round(float(found.scores[i]), 6),
                bbox=[round(value, 3) for value in found.bboxes[i].tolist()],
            )
            instance["class"] = self._class(label)
            if "masks" in found:
                # installed with mmdet, not needed by the other libraries
                from pycocotools import mask as coco_mask

                rle = coco_mask.encode(np.asfortranarray(found.masks[i].numpy().astype(np.uint8)))
                instance["mask"] = dict(size=rle["size"], counts=rle["counts"].decode("ascii"))
            instances.append(instance)
        return dict(instances=instances)

    def _describe_areas(self, sample: Any) -> dict[str, Any]:
        labels, counts = sample.pred_sem_seg.data.unique(return_counts=True)
        total = int(counts.sum())
        areas = [
            {"label": label, "class": self._class(label), "share": round(count / total, 6)}
            for label, count in zip(labels.tolist(), counts.tolist())
        ]
        return dict(areas=sorted(areas, key=lambda area: -area["share"]))


class _KeptImage(BaseVisBackend):
    """Visualization backend that keeps the last image drawn."""

    image: np.ndarray

    def __init__(self) -> None:
        super().__init__(save_dir="")

    def _init_env(self) -> None:
        """Do nothing."""

    @property
    def experiment(self) -> _KeptImage:
        """The backend itself."""
        return self

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs) -> None:
        """Keep the image."""
        self.image = np.asarray(image)


def _test_pipeline(cfg: Config, config_path: str) -> list[dict]:
    if cfg.get("test_dataloader"):
        return next(leaf_datasets(cfg.test_dataloader.dataset)).pipeline
    if cfg.get("test_pipeline"):
        return cfg.test_pipeline
    fail(f"prediction needs a test_dataloader or test_pipeline in {config_path!r}")


def _without_annotations(steps: list) -> list:
    """Return the pipeline without the steps that load annotations."""
    kept = []
    for step in deepcopy(steps):
        if isinstance(step, list):
            inner = _without_annotations(step)
            if inner:
                kept.append(inner)
        elif type_name(step) == "TestTimeAug":
            step["transforms"] = _without_annotations(step["transforms"])
            kept.append(step)
        elif "LoadAnnotations" not in type_name(step) and "LoadPanoptic" not in type_name(step):
            kept.append(step)
    return kept


def _shape(inputs: Tensor | list) -> object:
    """Return the sizes of an image, or of all its views."""
    return inputs.shape if isinstance(inputs, Tensor) else [_shape(view) for view in inputs]
