"""Key names of Detectron2's Mask R-CNN and of its cascade, in terms of mmdetection's heads.

Values need no change. Both predict three anchors of rising ratio at a pixel and four deltas of an
anchor or class in a row, flatten maps of boxes as (C, H, W), and have the background as last class.
"""

from collections.abc import Iterator

from .rules import Rename

#: A key by which these heads are known, there and here: that of the RPN's second convolution.
DETECTRON2_KEY = (
    "proposal_generator.rpn_head.conv.conv1.weight",
    "rpn_head.rpn_conv.1.conv.weight",
)


def _convs(original: str, ours: str) -> Iterator[Rename]:
    """Yield the names of four convolutions with norms, counted from one there, from zero here."""
    for i in range(4):
        yield Rename(f"{original}{i + 1}.norm.", f"{ours}.{i}.ln.")
        yield Rename(f"{original}{i + 1}.{{parameter}}", f"{ours}.{i}.conv.{{parameter}}")


def _box_head(stage: str) -> Iterator[Rename]:
    """Yield the names of a box head; ``stage`` is empty where there is but one."""
    original, ours = f"roi_heads.box_head.{stage}", f"roi_head.bbox_head.{stage}"
    yield from _convs(f"{original}conv", f"{ours}shared_convs")
    yield Rename(f"{original}fc1.", f"{ours}shared_fcs.0.")
    predictor = f"roi_heads.box_predictor.{stage}"
    yield Rename(f"{predictor}cls_score.", f"{ours}fc_cls.")
    yield Rename(f"{predictor}bbox_pred.", f"{ours}fc_reg.")


DETECTRON2_HEADS = (
    # other heads have no place there
    Rename(None, "rpn_head."),
    Rename(None, "roi_head."),
    # what mmdetection keeps in its configs, and Detectron2 kept in files at times
    Rename("pixel_mean", None),
    Rename("pixel_std", None),
    Rename("proposal_generator.anchor_generator.", None),
    Rename("proposal_generator.rpn_head.conv.conv{i}.", "rpn_head.rpn_conv.{i}.conv."),
    Rename("proposal_generator.rpn_head.objectness_logits.", "rpn_head.rpn_cls."),
    Rename("proposal_generator.rpn_head.anchor_deltas.", "rpn_head.rpn_reg."),
    *_box_head(""),
    *_box_head("{stage}."),
    *_convs("roi_heads.mask_head.mask_fcn", "roi_head.mask_head.convs"),
    Rename("roi_heads.mask_head.deconv.", "roi_head.mask_head.upsample."),
    Rename("roi_heads.mask_head.predictor.", "roi_head.mask_head.conv_logits."),
)
