# LocalVMamba on ImageNet-1k. Mixed precision, clipping and averaged weights are what the authors
# advise for larger models, this one among them; their file has none of the three.
_base_ = "./local-mamba_in1k.py"
