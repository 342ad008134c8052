from .efficient_vmamba import EfficientVMamba
from .local_vmamba import LocalVMamba
from .msvmamba import MSVMamba
from .vim import LocalVim, Vim
from .vmamba import VMamba

__all__ = ["EfficientVMamba", "LocalVMamba", "LocalVim", "MSVMamba", "VMamba", "Vim"]
