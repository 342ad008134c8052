"""Linear probe: a linear classifier trained on the features of a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Progress = Callable[[], object]


@dataclass(frozen=True)
class Features:
    """Features of a network for a dataset.

    Attributes:
        values: Inputs of the classifier's head, float32 ``(N, C)`` on the CPU.
        labels: int64 ``(N,)``.
        classes: Names of the classes; empty if the dataset has none.
    """

    values: Tensor
    labels: Tensor
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probe:
    """A trained linear classifier and its accuracy.

    Attributes:
        classifier: Linear layer from features to classes.
        train_accuracy, test_accuracy: Accuracies in percent.
        class_accuracy: Accuracy on the test data of each class in percent; nan without images.
        losses: Mean loss of each epoch.
    """

    classifier: nn.Linear
    train_accuracy: float
    test_accuracy: float
    class_accuracy: tuple[float, ...]
    losses: tuple[float, ...]


def frozen_loader(loader: ConfigDict, pipeline: Sequence[dict]) -> dict:
    """Return a data loader's config that yields every image once, in order, as in a test."""
    loader = deepcopy(loader)
    dataset = loader["dataset"]
    while "dataset" in dataset:  # wrappers that repeat or select images
        dataset = dataset["dataset"]
    if "datasets" in dataset:
        raise ValueError("the training data must be a single dataset, got several")
    dataset["pipeline"] = deepcopy(list(pipeline))
    return dict(
        batch_size=loader["batch_size"],
        num_workers=loader.get("num_workers", 0),
        dataset=dataset,
        sampler=dict(type="DefaultSampler", shuffle=False),
    )


def extract_features(
    model: BaseModel, cfg: Config, split: str, progress: Progress = lambda: None
) -> Features:
    """Run a classifier without its last layer on the training or test data of its config.

    Both use the test pipeline, which has no random steps.

    Args:
        model: A classifier of mmpretrain with its weights, on the device to use.
        cfg: Its config, with a ``train_dataloader`` and a ``test_dataloader``.
        split: ``'train'`` or ``'test'``.
        progress: Called after each batch.

    Raises:
        ValueError: If the split is unknown, or images do not have exactly one label.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")
    pipeline = cfg.test_dataloader.dataset.pipeline
    config = frozen_loader(cfg[f"{split}_dataloader"], pipeline)
    model.eval()
    values: list[Tensor] = []
    labels: list[Tensor] = []
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.no_grad():
        loader = Runner.build_dataloader(config)
        for batch in loader:
            data = model.data_preprocessor(batch, False)
            features = model.extract_feat(data["inputs"])
            last = model.head.pre_logits(features)
            values.append(last.float().cpu())
            labels += [sample.gt_label for sample in data["data_samples"]]
            progress()
    if any(label.numel() != 1 for label in labels):
        raise ValueError("a linear probe needs data with one label per image")
    classes = (getattr(loader.dataset, "metainfo", None) or {}).get("classes") or ()
    return Features(torch.cat(values), torch.cat(labels).cpu().long(), tuple(classes))


def train_probe(
    train: Features,
    test: Features,
    *,
    epochs: int = 30,
    batch_size: int = 4096,
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = lambda: None,
) -> Probe:
    """Train a linear classifier on stored features, with SGD and a cosine schedule.

    Features are first standardised by the training data, so that the learning rate suits every
    network. The returned classifier takes unstandardised features.

    Args:
        train: Features to train on.
        test: Features to test on.
        epochs: Passes over the training features.
        batch_size: Largest number of features per step.
        lr: Initial learning rate; it falls to 0 along a cosine, step by step.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        seed: Seed of the order of the features.
        device: Device to train on.
        progress: Called after each epoch.

    Raises:
        ValueError: If a number is not positive, or the features have different widths.
    """
    if min(epochs, batch_size) < 1 or lr <= 0:
        raise ValueError(
            f"epochs, batch_size and lr must be positive, got {epochs}, {batch_size}, {lr}"
        )
    width = train.values.shape[1]
    if test.values.shape[1] != width:
        raise ValueError(
            f"train and test must have the same width, got {width} and {test.values.shape[1]}"
        )
    num_classes = max(int(train.labels.max()), int(test.labels.max()), len(train.classes) - 1) + 1
    mean = train.values.mean(0)
    std = train.values.std(0, correction=0).clamp(min=1e-6)
    values = ((train.values - mean) / std).to(device)
    labels = train.labels.to(device)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(num_classes, width, device=device, requires_grad=True)
    bias = torch.zeros(num_classes, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=lr, momentum=momentum, weight_decay=weight_decay)
    per_epoch = -(-len(labels) // batch_size)
    losses = []
    for epoch in range(epochs):
        total = 0.0
        order = torch.randperm(len(labels), generator=generator).to(device)
        for i, chosen in enumerate(order.split(batch_size)):
            done = (epoch * per_epoch + i) / (epochs * per_epoch)
            optimizer.param_groups[0]["lr"] = lr * (1 + cos(pi * done)) / 2
            loss = F.cross_entropy(F.linear(values[chosen], weight, bias), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(chosen)
        losses.append(total / len(labels))
        progress()
    classifier = nn.Linear(width, num_classes)
    with torch.no_grad():
        # fold the standardisation into the weights
        classifier.weight.copy_(weight.cpu() / std)
        classifier.bias.copy_(bias.cpu() - classifier.weight @ mean)
        right = {
            name: classifier(features.values).argmax(1) == features.labels
            for name, features in (("train", train), ("test", test))
        }
    accuracies = {name: 100 * float(found.float().mean()) for name, found in right.items()}
    by_class = [right["test"][test.labels == c].float().mean() for c in range(num_classes)]
    return Probe(
        classifier,
        accuracies["train"],
        accuracies["test"],
        tuple(100 * float(accuracy) for accuracy in by_class),
        tuple(losses),
    )


def draw_probe(probe: Probe, classes: Sequence[str] = (), title: str = "") -> Figure:
    """Draw the training loss and the accuracy of each class.

    Args:
        probe: Result of :func:`train_probe`.
        classes: Names of the classes.
        title: Title of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained", dpi=100)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    left.plot(range(1, len(probe.losses) + 1), probe.losses)
    left.set_xlabel("epoch")
    left.set_title("loss of the linear classifier", fontsize=10)
    numbers = range(len(probe.class_accuracy))
    right.bar(numbers, probe.class_accuracy)
    if len(classes) == len(numbers) <= 20:
        right.set_xticks(numbers, classes, rotation=30 if max(map(len, classes)) > 3 else 0)
    right.axhline(probe.test_accuracy, color="0.3", linestyle="--")
    right.set_ylim(0, 103)
    right.set_xlabel("class")
    right.set_title(f"accuracy by class (%), all: {probe.test_accuracy:.1f}", fontsize=10)
    figure.suptitle(title, fontsize=10)
    return figure
