"""Declaration of LocalVMamba, which adds names for the merge of directions to VMamba's."""

from mmvssm.models.backbones.local_vmamba import LocalVMamba

from .family import Family, Released, register_family
from .rules import Rename
from .stages import FIRST_RELEASE, MIXER, SS2D_LINEAR, SS2D_TRUNK, TASKS, read_options

_URL = "https://github.com/hunto/LocalMamba/releases/download/v1.0.0/"

register_family(
    Family(
        name="local_vmamba",
        backbone=LocalVMamba,
        trunk=(*SS2D_TRUNK, Rename(".mixer.multi_scan.", ".mixer.merge.")),
        tasks=TASKS,
        linear=SS2D_LINEAR,
        first_release=FIRST_RELEASE,
        read_options=read_options,
        sign=rf"{MIXER}(multi_scan|merge)\.",
        released=(
            # not linked; the configs of the authors' detectors and segmentors name it
            Released("local-vmamba-tiny_8xb128_in1k", f"{_URL}local_vssm_tiny.ckpt"),
            Released(
                "local-vmamba-small_8xb128_in1k",
                f"{_URL}local_vssm_small.ckpt",
                logs=(f"{_URL}log_local_vssm_small.txt",),
            ),
        ),
    )
)
