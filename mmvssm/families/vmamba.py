"""VMamba."""

from mmvssm.models.backbones.vmamba import VMamba

from .family import Family, Released, ScanCost, register_family
from .stages import FIRST_RELEASE, MIXER, SS2D_LINEAR, SS2D_TRUNK, TASKS, read_options

_URL = "https://github.com/MzeroMiko/VMamba/releases/download/%23"
_ADE = "4xb4-160k_ade20k-512x512"
_COCO = "mask_rcnn_swin_fpn_coco"
_COCO_V2 = "mask_rcnn_vssm_fpn_coco"
_RELEASED = {
    "vmamba-v0-tiny_8xb128_in1k": "v0cls/vssmtiny_dp01_ckpt_epoch_292",
    "vmamba-v0-small_8xb128_in1k": "v0cls/vssmsmall_dp03_ckpt_epoch_238",
    "vmamba-v0-base_8xb128_in1k": "v0cls/vssmbase_dp06_ckpt_epoch_241",
    "vmamba-tiny-s2l5_8xb128_in1k": "v2cls/vssm_tiny_0230_ckpt_epoch_262",
    "vmamba-small-s2l15_8xb128_in1k": "v2cls/vssm_small_0229_ckpt_epoch_222",
    "vmamba-base-s2l15_8xb128_in1k": "v2cls/vssm_base_0229_ckpt_epoch_237",
    "vmamba-tiny-s1l8_8xb128_in1k": "v2cls/vssm1_tiny_0230s_ckpt_epoch_264",
    "vmamba-small-s1l20_8xb128_in1k": "v2cls/vssm1_small_0229s_ckpt_epoch_240",
    "vmamba-base-s1l20_8xb128_in1k": "v2cls/vssm1_base_0229s_ckpt_epoch_225",
    "mask-rcnn_vmamba-v0-tiny_fpn_1x_coco": f"v0det/vssmtiny_{_COCO}_epoch_12",
    "mask-rcnn_vmamba-v0-tiny_fpn_ms-3x_coco": f"v0det/vssmtiny_{_COCO}_ms_3x_epoch_34",
    "mask-rcnn_vmamba-v0-small_fpn_1x_coco": f"v0det/vssmsmall_{_COCO}_epoch_12",
    "mask-rcnn_vmamba-v0-small_fpn_ms-3x_coco": f"v0det/vssmsmall_{_COCO}_ms_3x_epoch_34",
    "mask-rcnn_vmamba-v0-base_fpn_1x_coco": f"v0det/vssmbase_{_COCO}_epoch_12",
    "mask-rcnn_vmamba-tiny-s2l5_fpn_1x_coco": f"v2det/{_COCO_V2}_tiny_epoch_12",
    "mask-rcnn_vmamba-tiny-s2l5_fpn_ms-3x_coco": f"v2det/{_COCO_V2}_tiny_ms_3x_epoch_36",
    "mask-rcnn_vmamba-small-s2l15_fpn_1x_coco": f"v2det/{_COCO_V2}_small_epoch_11",
    "mask-rcnn_vmamba-small-s2l15_fpn_ms-3x_coco": f"v2det/{_COCO_V2}_small_ms_3x_epoch_32",
    "mask-rcnn_vmamba-base-s2l15_fpn_1x_coco": f"v2det/{_COCO_V2}_base_epoch_11",
    "mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco": f"v2det/{_COCO_V2}_tiny_s_epoch_12",
    "mask-rcnn_vmamba-tiny-s1l8_fpn_ms-3x_coco": f"v2det/{_COCO_V2}_tiny_ms_3x_s_epoch_31",
    f"vmamba-v0-tiny_upernet_{_ADE}": f"v0seg/vssmtiny_upernet_{_ADE}_iter_160000",
    f"vmamba-v0-small_upernet_{_ADE}": f"v0seg/vssmsmall_upernet_{_ADE}_iter_160000",
    f"vmamba-v0-base_upernet_{_ADE}": f"v0seg/vssmbase_upernet_{_ADE}_iter_128000",
    f"vmamba-tiny-s2l5_upernet_{_ADE}": f"v2seg/upernet_vssm_{_ADE}_tiny_iter_160000",
    f"vmamba-small-s2l15_upernet_{_ADE}": f"v2seg/upernet_vssm_{_ADE}_small_iter_144000",
    f"vmamba-base-s2l15_upernet_{_ADE}": f"v2seg/upernet_vssm_{_ADE}_base_iter_160000",
    f"vmamba-tiny-s1l8_upernet_{_ADE}": f"v2seg/upernet_vssm_{_ADE}_tiny_s_iter_160000",
}

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
        released=tuple(Released(config, f"{_URL}{file}.pth") for config, file in _RELEASED.items()),
        cost=ScanCost(precision=2e-4),
    )
)
