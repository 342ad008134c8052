from .efficient_vmamba import EfficientVMamba
from .vmamba import VMamba

__all__ = ["EfficientVMamba", "VMamba"]
