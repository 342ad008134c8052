"""Declaration of MSVMamba (both versions), which adds names for its own layers to VMamba's."""

from mmvssm.models.backbones.msvmamba import MSVMamba

from .family import Family, Released, register_family
from .rules import Rename
from .stages import FIRST_RELEASE, MIXER, SS2D_TRUNK, TASKS, read_options

_DRIVE = "https://drive.google.com/drive/folders/"
_HUB = "https://huggingface.co/YuhengSSS/MSVMamba"
#: Folders with weights and logs of the first version.
_FOLDERS = {
    "msvmamba-nano_8xb128_in1k": "1J41w3ApitQhp2O3wHmJoOs4U032uqebK",
    "msvmamba-micro_8xb128_in1k": "1jfl2GmuKcUB8sPwRlyHK_wT0MjqgljYk",
    "msvmamba-tiny_8xb128_in1k": "1ddNWk89ohcxxMuVEaJ2Y5A6xeBKgA7lU",
    "mask-rcnn_msvmamba-micro_fpn_1x_coco": "12CrNAGBalU0yoQcQgPTGO5lM397Jc4La",
    "mask-rcnn_msvmamba-tiny_fpn_1x_coco": "1MogQ6PGdrgsyJckJTL9BJzlMCodJ3epu",
    "mask-rcnn_msvmamba-micro_fpn_ms-3x_coco": "10-8cDnRfnk_j4QxMHkhUyecucnM_82pt",
    "mask-rcnn_msvmamba-tiny_fpn_ms-3x_coco": "1dK1qFjaU8GmqvsmMr1mgppNJlNacHPtG",
    "msvmamba-micro_upernet_4xb4-160k_ade20k-512x512": "1naZHL4mwTchllAE001SsyZ_z4y_JRF0s",
    "msvmamba-tiny_upernet_4xb4-160k_ade20k-512x512": "1FaFPFExDd_4goIlLjTR7fXsuMRr-vYoY",
}

register_family(
    Family(
        name="msvmamba",
        backbone=MSVMamba,
        trunk=(
            *SS2D_TRUNK,
            Rename(".mixer.conv2d_b1.", ".mixer.small_conv2d."),
            Rename(".mixer.se.fc.0.", ".mixer.se.fc1."),
            Rename(".mixer.se.fc.2.", ".mixer.se.fc2."),
            Rename(".convFFN.linear{i}.", ".mlp.fc{i}."),
            Rename(".convFFN.dwc.", ".mlp.dwconv."),
        ),
        tasks=TASKS,
        # the layers of `mlp` are 1x1 convolutions in our models, too
        linear=r"\.(in_proj|out_proj|se\.fc1|se\.fc2|reduction|fc)\.weight$",
        # dense models of the first version read "model", those of v3 "model_ema"
        container=("model", "model_ema"),
        first_release=FIRST_RELEASE,
        read_options=read_options,
        sign=rf"{MIXER}(conv2d_b1|small_conv2d)\.|\.blocks\.\d+\.convFFN\.",
        released=(
            *(Released(config, page=f"{_DRIVE}{folder}") for config, folder in _FOLDERS.items()),
            *(
                Released(
                    f"msvmamba-v3-{arch}_8xb128_in1k",
                    f"{_HUB}/resolve/main/msvmambav3_{arch}_224.pth",
                    page=_HUB,
                )
                for arch in ("tiny", "small", "base")
            ),
        ),
    )
)
