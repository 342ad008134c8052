from .efficient_vmamba import EfficientVMamba
from .local_vmamba import LocalVMamba
from .msvmamba import MSVMamba
from .vmamba import VMamba

__all__ = ["EfficientVMamba", "LocalVMamba", "MSVMamba", "VMamba"]
