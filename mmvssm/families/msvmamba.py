"""MSVMamba, both versions, whose checkpoints have VMamba's names and those of its own layers."""

from mmvssm.models.backbones.msvmamba import MSVMamba

from .family import Family, register_family
from .rules import Rename
from .stages import FIRST_RELEASE, MIXER, SS2D_TRUNK, TASKS, read_options

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
        # the layers of `mlp` are 1x1 convolutions here, too
        linear=r"\.(in_proj|out_proj|se\.fc1|se\.fc2|reduction|fc)\.weight$",
        # the detectors and segmentors of the first version read one, those of the third the other
        container=("model", "model_ema"),
        first_release=FIRST_RELEASE,
        read_options=read_options,
        sign=rf"{MIXER}(conv2d_b1|small_conv2d)\.|\.blocks\.\d+\.convFFN\.",
    )
)
