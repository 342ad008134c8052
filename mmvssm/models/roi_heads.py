"""RoI heads for mmdetection.

The module needs mmdetection, so it is not imported with the package; configs name its classes by
their full path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor

Maps = tuple[Tensor, ...]


class SingleMaskCascadeRoIHead(CascadeRoIHead):
    """Cascade of box heads with a single mask head, as in Detectron2's Cascade Mask R-CNN.

    mmdetection's :class:`CascadeRoIHead` has a mask head for every stage and averages their masks.
    This class has one mask head, which is trained on the samples of the first stage and predicts
    from the final boxes. There are two further differences. The score of a box is the mean of the
    stages' probabilities, instead of the probability of their mean logits. The gradient from the
    box heads to the feature maps is divided by the number of stages, so ``stage_loss_weights``
    should be ones.

    `Cascade R-CNN <https://arxiv.org/abs/1906.09756>`_

    Args:
        *args: Arguments of :class:`CascadeRoIHead`.
        **kwargs: Arguments of :class:`CascadeRoIHead`; ``mask_head`` and ``mask_roi_extractor`` are
            a single config each.

    Raises:
        ValueError: If boxes are refined class by class (``reg_class_agnostic=False``).
    """

    init_mask_head = StandardRoIHead.init_mask_head
    _mask_forward = StandardRoIHead._mask_forward
    predict_mask = StandardRoIHead.predict_mask

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not all(head.reg_class_agnostic for head in self.bbox_head):
            raise ValueError("bbox_head must have reg_class_agnostic=True in every stage")

    def bbox_loss(self, stage: int, x: Maps, sampling_results: list[SamplingResult]) -> dict:
        """Compute the losses of a stage; ``x`` are maps ``(B, C, H_i, W_i)``."""
        x = tuple(_ScaledGradient.apply(level, 1 / self.num_stages) for level in x)
        return super().bbox_loss(stage, x, sampling_results)

    def mask_loss(
        self,
        stage: int,
        x: Maps,
        sampling_results: list[SamplingResult],
        batch_gt_instances: list[InstanceData],
    ) -> dict:
        """Compute the mask loss, which only the first stage has."""
        if stage > 0:
            return dict(loss_mask={})
        rois = bbox2roi([result.pos_priors for result in sampling_results])
        masks = self._mask_forward(x, rois)["mask_preds"]
        return self.mask_head.loss_and_target(
            masks, sampling_results, batch_gt_instances, self.train_cfg[0]
        )

    def forward(
        self,
        x: Maps,
        rpn_results_list: list[InstanceData],
        batch_data_samples: list[DetDataSample],
    ) -> tuple:
        """Return scores, box deltas and mask logits of all proposals, by image."""
        proposals = [result.bboxes for result in rpn_results_list]
        counts = tuple(map(len, proposals))
        metas = [sample.metainfo for sample in batch_data_samples]
        rois, scores, deltas = self._refine_roi(x, bbox2roi(proposals), metas, counts)
        masks = self._mask_forward(x, torch.cat(rois))["mask_preds"]
        return scores, deltas, masks.split(counts)

    def _refine_roi(
        self,
        x: Maps,
        rois: Tensor,
        batch_img_metas: list[dict],
        num_proposals_per_img: Sequence[int],
    ) -> tuple[Maps, Maps, Maps]:
        """Refine boxes from stage to stage.

        Args:
            x: Maps ``(B, C, H_i, W_i)``.
            rois: Image index and corners of each box, ``(N, 5)``.
            batch_img_metas: Meta information of the images.
            num_proposals_per_img: Number of boxes of each image.

        Returns:
            For each image: the input boxes of the last stage ``(n, 5)``, the logarithms of the
            stages' mean probabilities ``(n, classes + 1)``, and the deltas of the last stage
            ``(n, 4)``.
        """
        counts = tuple(num_proposals_per_img)
        total: Tensor | float = 0.0
        for stage, head in enumerate(self.bbox_head):
            found = self._bbox_forward(stage, x, rois)
            total = total + found["cls_score"].softmax(dim=-1)
            boxes, deltas = rois.split(counts), found["bbox_pred"].split(counts)
            if stage < self.num_stages - 1:
                refined = [
                    head.regress_by_class(box[:, 1:], None, delta, meta)
                    for box, delta, meta in zip(boxes, deltas, batch_img_metas, strict=True)
                ]
                rois = torch.cat([rois[:, :1], torch.cat(refined)], dim=1)
        # the last head expects logits; the softmax of log-probabilities is the probabilities
        scores = (total / self.num_stages).log()
        return boxes, scores.split(counts), deltas


class _ScaledGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by ``scale``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None
