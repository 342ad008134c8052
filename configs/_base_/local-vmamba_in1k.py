# LocalVMamba on ImageNet-1k. Its released weights were trained in mixed precision. Clipping and
# averaging are our addition: the authors' file has neither; their page suggests both for larger
# models.
_base_ = "./local-mamba_in1k.py"
