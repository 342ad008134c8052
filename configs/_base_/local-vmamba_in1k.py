# LocalVMamba on ImageNet-1k. Its released weights were trained in mixed precision. Clipping and
# averaging are ours: the authors' file has neither, their page offers both for larger models.
_base_ = "./local-mamba_in1k.py"
