"""Test-time augmentation for detectors that also predict masks."""

from __future__ import annotations

import torch
from mmcv.ops import batched_nms
from mmdet.models import DetTTAModel
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip
from mmengine.structures import InstanceData

_FLIPPED_AXES = {"horizontal": [-1], "vertical": [-2], "diagonal": [-2, -1]}


class InstanceTTAModel(DetTTAModel):
    """Wrapper that merges the boxes and masks found in several views of an image.

    mmdet's ``DetTTAModel`` does not support masks. This class applies one NMS to the boxes of all
    views, and every remaining box keeps the mask of its view.

    Args:
        module: The detector or its config.
        tta_cfg: Dict with ``nms``, a config of mmcv's NMS, and ``max_per_img``.
    """

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        """Merge the predictions of all views of one image, in the image's own coordinates."""
        boxes, scores, labels, masks = [], [], [], []
        for view in data_samples:
            found = view.pred_instances
            flipped = view.flip_direction if view.flip else None
            boxes.append(
                bbox_flip(found.bboxes, view.ori_shape, flipped) if flipped else found.bboxes
            )
            scores.append(found.scores)
            labels.append(found.labels)
            if "masks" in found:
                masks.append(found.masks.flip(_FLIPPED_AXES[flipped]) if flipped else found.masks)

        labels = torch.cat(labels)
        kept, index = batched_nms(torch.cat(boxes), torch.cat(scores), labels, self.tta_cfg.nms)
        kept, index = kept[: self.tta_cfg.max_per_img], index[: self.tta_cfg.max_per_img]
        merged = InstanceData(bboxes=kept[:, :4], scores=kept[:, 4], labels=labels[index])
        if masks:
            merged.masks = torch.cat(masks)[index]
        result = data_samples[0]
        result.pred_instances = merged
        return result
