"""Dual-SAM segmentor: two encoded images, two decoders, a mutual loss, votes for a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import ModuleList
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from .connectivity import vote
from .network import Branch, Decoder


@MODELS.register_module()
class DualSAM(BaseSegmentor):
    """Segment animals in an image with the help of its gamma-corrected copy.

    A prediction is a probability map, stored in three fields of each sample: ``probability`` at the
    size of the network's input, ``seg_logits`` at that of the original image, and ``pred_sem_seg``,
    the latter with a threshold applied.

    Args:
        backbone: Config of a :class:`~.network.DualViTSAM` or :class:`~.network.DualPyramid`.
        loss: Config of the loss.
        decoder_widths: Channels of the decoders' levels, finest first; multiples of 16.
        crossed_skips: Whether each decoder gets the skips of the other image, as in the published
            code; in the paper's figure it gets those of its own image.
        consistent_votes: See :func:`~.connectivity.vote`.
        threshold: Probability above which a pixel is animal; the default is 65 of 255, rounded.
        data_preprocessor: Config of an :class:`~.data.ImagePairPreProcessor`.
        init_cfg: Initialisation.
    """

    num_classes = 2

    def __init__(
        self,
        backbone: dict,
        loss: dict | None = None,
        decoder_widths: Sequence[int] = (32, 64, 128, 256),
        crossed_skips: bool = True,
        consistent_votes: bool = False,
        threshold: float = 65.5 / 255,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        x = self.backbone
        sizes = (decoder_widths, x.neck_channels, x.skip_channels, x.num_upsamples)
        self.decoders = ModuleList(Decoder(*sizes) for _ in ("image", "gamma"))
        self.mutual_loss = MODELS.build(loss or dict(type="MutualConnectivityLoss"))
        self.crossed_skips, self.consistent_votes = crossed_skips, consistent_votes
        self.threshold = threshold

    def extract_feat(self, inputs: Tensor) -> tuple[Branch, Branch]:
        """Encode ``(B, 6, H, W)``: an image, and its copy in the last three channels."""
        if inputs.shape[1] != 6:
            raise ValueError(
                "inputs must have 6 channels, an image and its gamma-corrected copy (see the"
                f" transform AddGammaImage), got {inputs.shape[1]}"
            )
        return self.backbone(*inputs.chunk(2, dim=1))

    def _forward(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the logits of both decoders, see :class:`~.network.Decoder`."""
        image, gamma = self.extract_feat(inputs)
        skips = (gamma.skips, image.skips) if self.crossed_skips else (image.skips, gamma.skips)
        necks = (image.neck, gamma.neck)
        image_logits, gamma_logits = (
            decoder(*branch) for decoder, *branch in zip(self.decoders, necks, skips)
        )
        return image_logits, gamma_logits

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """Compute the losses of all scales."""
        masks = torch.cat([sample.gt_sem_seg.data for sample in data_samples])
        return self.mutual_loss(*self._forward(inputs), masks)

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict] | None = None) -> Tensor:
        """Return probabilities ``(B, 1, H, W)`` from the votes of the image's decoder alone."""
        image_logits, _ = self._forward(inputs)
        return vote(image_logits[0].float().sigmoid(), self.consistent_votes)

    def predict(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Predict a mask for each image."""
        probabilities = self.encode_decode(inputs)
        if data_samples is None:
            data_samples = [SegDataSample() for _ in probabilities]
        for probability, sample in zip(probabilities, data_samples):
            size = sample.metainfo.get("ori_shape", probability.shape[-2:])
            full = F.interpolate(probability[None], tuple(size), mode="bilinear")[0]
            sample.probability = PixelData(data=probability)
            sample.seg_logits = PixelData(data=full)
            sample.pred_sem_seg = PixelData(data=(full > self.threshold).long())
        return data_samples
