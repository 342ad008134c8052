from .efficient_vmamba import EfficientVMamba
from .msvmamba import MSVMamba
from .vmamba import VMamba

__all__ = ["EfficientVMamba", "MSVMamba", "VMamba"]
