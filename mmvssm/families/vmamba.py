"""Declaration of VMamba."""

from mmvssm.models.backbones.vmamba import VMamba

from .family import Family, Released, ScanCost, register_family
from .stages import FIRST_RELEASE, MIXER, SS2D_LINEAR, SS2D_TRUNK, TASKS, read_options

_URL = "https://github.com/MzeroMiko/VMamba/releases/download/%23"
_ADE = "4xb4-160k_ade20k-512x512"
_COCO = "mask_rcnn_swin_fpn_coco"
_COCO_V2 = "mask_rcnn_vssm_fpn_coco"


def _released(config: str, file: str, *logs: str, **options: str) -> Released:
    """Return a file of a release: ``file`` is ``TAG/NAME``, ``logs`` are in the same release."""
    tag = file.partition("/")[0]
    urls = tuple(f"{_URL}{tag}/{log}" for log in logs)
    return Released(config, f"{_URL}{file}.pth", logs=urls, **options)


def _classifier(arch: str, tag: str, name: str, epoch: int, log: str, **options: str) -> Released:
    file = f"{tag}/{name}_ckpt_epoch_{epoch}"
    return _released(f"vmamba-{arch}_8xb128_in1k", file, log, **options)


def _detector(config: str, tag: str, name: str, epoch: str, suffix: str = "") -> Released:
    config = f"mask-rcnn_vmamba-{config}_coco"
    return _released(config, f"{tag}/{name}{epoch}", f"{name}{suffix}.log")


def _segmentor(arch: str, tag: str, name: str, iterations: int, tta: str) -> Released:
    config, last = f"vmamba-{arch}_upernet_{_ADE}", f"{name}_iter_{iterations}"
    return _released(config, f"{tag}/{last}", f"{name}.log", f"{tta or last}_tta.log")


_RELEASED = (
    # the only file without averaged weights
    _classifier(
        "v0-tiny", "v0cls", "vssmtiny_dp01", 292, "vssmtiny_dp01_e292_woema.log", weights="online"
    ),
    _classifier("v0-small", "v0cls", "vssmsmall_dp03", 238, "vssmsmall_dp03_e238_ema.log"),
    _classifier("v0-base", "v0cls", "vssmbase_dp06", 241, "vssmbase_dp06_e241_ema.log"),
    # the published detectors and segmentors started from this one
    _classifier(
        "v0-base",
        "20240218",
        "vssmbase_dp05",
        260,
        "vssmbase_dp05_e260_woema.log",
        variant="dp05",
        weights="online",
        result="83.2",
    ),
    _classifier("tiny-s2l5", "v2cls", "vssm_tiny_0230", 262, "vssm_tiny_0230.txt"),
    _classifier("small-s2l15", "v2cls", "vssm_small_0229", 222, "vssm_small_0229.txt"),
    _classifier("base-s2l15", "v2cls", "vssm_base_0229", 237, "vssm_base_0229.txt"),
    _classifier("tiny-s1l8", "v2cls", "vssm1_tiny_0230s", 264, "vssm1_tiny_0230s.txt"),
    _classifier("small-s1l20", "v2cls", "vssm1_small_0229s", 240, "vssm1_small_0229s.txt"),
    _classifier("base-s1l20", "v2cls", "vssm1_base_0229s", 225, "vssm1_base_0229s.txt"),
    _classifier("tiny-0220", "20240220", "vssmtiny_dp02", 258, "vssmtiny_dp02_e258_ema.log"),
    _detector("v0-tiny_fpn_1x", "v0det", f"vssmtiny_{_COCO}", "_epoch_12"),
    _detector("v0-tiny_fpn_ms-3x", "v0det", f"vssmtiny_{_COCO}_ms_3x", "_epoch_34"),
    _detector("v0-small_fpn_1x", "v0det", f"vssmsmall_{_COCO}", "_epoch_12"),
    _detector("v0-small_fpn_ms-3x", "v0det", f"vssmsmall_{_COCO}_ms_3x", "_epoch_34"),
    _detector("v0-base_fpn_1x", "v0det", f"vssmbase_{_COCO}", "_epoch_12"),
    _detector("tiny-s2l5_fpn_1x", "v2det", f"{_COCO_V2}_tiny", "_epoch_12"),
    _detector("tiny-s2l5_fpn_ms-3x", "v2det", f"{_COCO_V2}_tiny_ms_3x", "_epoch_36"),
    _detector("small-s2l15_fpn_1x", "v2det", f"{_COCO_V2}_small", "_epoch_11"),
    _detector("small-s2l15_fpn_ms-3x", "v2det", f"{_COCO_V2}_small_ms_3x", "_epoch_32"),
    _detector("base-s2l15_fpn_1x", "v2det", f"{_COCO_V2}_base", "_epoch_11"),
    _released(
        "mask-rcnn_vmamba-base-s2l15_fpn_8xb1-1x_coco",
        f"v2det/{_COCO_V2}_base_epoch_12_bs8",
        f"{_COCO_V2}_base_bs8.log",
    ),
    _detector("tiny-s1l8_fpn_1x", "v2det", f"{_COCO_V2}_tiny", "_s_epoch_12", "_s"),
    _detector("tiny-s1l8_fpn_ms-3x", "v2det", f"{_COCO_V2}_tiny_ms_3x", "_s_epoch_31", "_s"),
    _segmentor("v0-tiny", "v0seg", f"vssmtiny_upernet_{_ADE}", 160000, ""),
    _segmentor("v0-small", "v0seg", f"vssmsmall_upernet_{_ADE}", 160000, ""),
    _segmentor("v0-base", "v0seg", f"vssmbase_upernet_{_ADE}", 128000, ""),
    *(
        _segmentor(arch, "v2seg", name, iterations, name)
        for arch, name, iterations in (
            ("tiny-s2l5", f"upernet_vssm_{_ADE}_tiny", 160000),
            ("small-s2l15", f"upernet_vssm_{_ADE}_small", 144000),
            ("base-s2l15", f"upernet_vssm_{_ADE}_base", 160000),
            ("tiny-s1l8", f"upernet_vssm_{_ADE}_tiny_s", 160000),
        )
    ),
)

register_family(
    Family(
        name="vmamba",
        backbone=VMamba,
        trunk=SS2D_TRUNK,
        tasks=TASKS,
        linear=SS2D_LINEAR,
        container=("model",),
        first_release=FIRST_RELEASE,
        first_release_archs=("v0-tiny", "v0-small", "v0-base"),
        read_options=read_options,
        scan=rf"{MIXER}A_logs$",
        released=_RELEASED,
        cost=ScanCost(precision=2e-4),
    )
)
