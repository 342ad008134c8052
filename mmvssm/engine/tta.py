"""Test-time augmentation for any config: averaging over several views of an image."""

from __future__ import annotations

from copy import deepcopy

from mmengine.config import Config

from .cli import fail, library_of

#: Default wrappers that average the views, by library.
TTA_MODELS: dict[str, dict] = {
    "mmpretrain": dict(type="mmpretrain.AverageClsScoreTTA"),
    "mmdet": dict(
        type="mmvssm.engine.det_tta.InstanceTTAModel",
        tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100),
    ),
    "mmseg": dict(type="mmseg.SegTTAModel"),
}


def tta_model(cfg: Config) -> dict:
    """Return the config of the wrapper that averages the views, without its ``module``."""
    own = cfg.get("tta_model")
    return TTA_MODELS[library_of(cfg, "--tta")] if own is None else own


def tta_pipeline(cfg: Config, config_path: str, pipeline: list[dict]) -> list[dict]:
    """Return the pipeline that creates the views: the config's, else :func:`flip_pipeline`.

    Args:
        cfg: The config.
        config_path: Path of the config, for the message.
        pipeline: The test pipeline.
    """
    own = cfg.get("tta_pipeline")
    if own is None and library_of(cfg, "--tta") == "mmseg":
        fail(f"--tta in segmentation needs a tta_pipeline in {config_path!r}")
    return own or flip_pipeline(pipeline)


def flip_pipeline(pipeline: list[dict]) -> list[dict]:
    """Return the pipeline with two views of each image, flipped and unflipped."""
    *steps, pack = deepcopy(pipeline)
    if "meta_keys" in pack:
        pack["meta_keys"] = (*pack["meta_keys"], "flip", "flip_direction")
    flips = [dict(type="RandomFlip", prob=1.0), dict(type="RandomFlip", prob=0.0)]
    return [*steps, dict(type="TestTimeAug", transforms=[flips, [pack]])]
