"""Key names of MSVMamba's checkpoints, both versions: those of VMamba's code and its own layers."""

from .rules import Rename
from .vmamba import VMAMBA_TRUNK

MSVMAMBA_TRUNK = (
    *VMAMBA_TRUNK,
    Rename(".mixer.conv2d_b1.", ".mixer.small_conv2d."),
    Rename(".mixer.se.fc.0.", ".mixer.se.fc1."),
    Rename(".mixer.se.fc.2.", ".mixer.se.fc2."),
    Rename(".convFFN.linear{i}.", ".mlp.fc{i}."),
    Rename(".convFFN.dwc.", ".mlp.dwconv."),
)

# the layers of `mlp` are 1x1 convolutions here, too
MSVMAMBA_LINEAR = r"\.(in_proj|out_proj|se\.fc1|se\.fc2|reduction|fc)\.weight$"
