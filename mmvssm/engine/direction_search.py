"""Progress reports of LocalMamba's direction search."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmvssm.models.layers import SEARCH_DIRECTIONS, RouteMerge, top_directions
from mmvssm.registry import HOOKS


@HOOKS.register_module()
class DirectionSearchHook(Hook):
    """Hook that reports the probabilities of a super-network's directions (``'search'``).

    It writes three reports. The log gets a line per layer with its most likely directions. All
    visualization backends (TensorBoard, ``scalars.json``) get the probability of each direction of
    each layer as ``directions/layer00/h``. The message hub, and so every line of the training log,
    gets ``direction_entropy``, the mean entropy of the layers in nats. The entropy starts at log 8
    = 2.08 (all directions equally likely) and falls as the search converges.

    `LocalMamba: Visual State Space Model with Windowed Selective Scan
    <https://arxiv.org/abs/2403.09338>`_

    Args:
        interval: Iterations between two reports; the last iteration is always reported.
        top: Number of directions per layer in the log.

    Raises:
        ValueError: If ``interval`` or ``top`` is out of range or, when training starts, if no layer
            of the model searches.
    """

    def __init__(self, interval: int = 500, top: int = 4) -> None:
        if interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval}")
        if top not in range(1, len(SEARCH_DIRECTIONS) + 1):
            raise ValueError(f"top must be from 1 to {len(SEARCH_DIRECTIONS)}, got {top}")
        self.interval = interval
        self.top = top
        self._merges: list[RouteMerge] = []

    def before_train(self, runner: Runner) -> None:
        """Collect the layers that search, in network order."""
        self._merges = [
            module
            for module in runner.model.modules()
            if isinstance(module, RouteMerge) and module.weights is not None
        ]
        if not self._merges:
            raise ValueError(
                "DirectionSearchHook found no layer that searches: set directions='search' in the"
                " backbone, or remove the hook"
            )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Report after every ``interval``-th iteration and after the last one."""
        if self.every_n_train_iters(runner, self.interval) or runner.iter + 1 == runner.max_iters:
            self._report(runner)

    @torch.no_grad()
    def _report(self, runner: Runner) -> None:
        table = torch.stack([merge.probabilities() for merge in self._merges]).float().cpu()
        entropy = float(torch.special.entr(table).sum(1).mean())
        runner.message_hub.update_scalar("train/direction_entropy", entropy)
        iteration = runner.iter + 1
        scalars = {
            f"directions/layer{layer:02}/{name}": probability
            for layer, row in enumerate(table.tolist())
            for name, probability in zip(SEARCH_DIRECTIONS, row)
        }
        runner.visualizer.add_scalars(scalars, step=iteration)
        lines = [f"Directions at iteration {iteration}, mean entropy {entropy:.4f}:"]
        for layer, row in enumerate(table):
            named = [f"{SEARCH_DIRECTIONS[i]} {row[i]:.3f}" for i in top_directions(row, self.top)]
            lines.append(f"  layer {layer:2}: {', '.join(named)}")
        runner.logger.info("\n".join(lines))
