"""Key names of LocalVMamba's checkpoints: VMamba's, and those of the merge of directions."""

from .rules import Rename
from .vmamba import VMAMBA_TRUNK

LOCAL_VMAMBA_TRUNK = (*VMAMBA_TRUNK, Rename(".mixer.multi_scan.", ".mixer.merge."))
