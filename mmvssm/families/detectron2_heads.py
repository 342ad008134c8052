"""Key names of Detectron2's Mask R-CNN and Cascade Mask R-CNN, mapped to mmdetection's heads.

Values need no change: both libraries predict three anchors of ascending ratio per pixel, store the
four deltas of an anchor or class contiguously, flatten box features as (C, H, W), and have the
background as the last class.
"""

from collections.abc import Iterator

from .rules import Rename

#: Key that identifies these heads, the RPN's second convolution: original name and ours.
DETECTRON2_KEY = (
    "proposal_generator.rpn_head.conv.conv1.weight",
    "rpn_head.rpn_conv.1.conv.weight",
)


def _convs(original: str, ours: str) -> Iterator[Rename]:
    """Yield the names of four convolutions with norms, counted from one there and zero here."""
    for i in range(4):
        yield Rename(f"{original}{i + 1}.norm.", f"{ours}.{i}.ln.")
        yield Rename(f"{original}{i + 1}.{{parameter}}", f"{ours}.{i}.conv.{{parameter}}")


def _box_head(stage: str) -> Iterator[Rename]:
    """Yield the names of a box head; ``stage`` is empty if there is only one."""
    original, ours = f"roi_heads.box_head.{stage}", f"roi_head.bbox_head.{stage}"
    yield from _convs(f"{original}conv", f"{ours}shared_convs")
    yield Rename(f"{original}fc1.", f"{ours}shared_fcs.0.")
    predictor = f"roi_heads.box_predictor.{stage}"
    yield Rename(f"{predictor}cls_score.", f"{ours}fc_cls.")
    yield Rename(f"{predictor}bbox_pred.", f"{ours}fc_reg.")


DETECTRON2_HEADS = (
    # other heads have no counterpart in Detectron2
    Rename(None, "rpn_head."),
    Rename(None, "roi_head."),
    # mmdetection keeps these in configs; some Detectron2 files hold them
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
