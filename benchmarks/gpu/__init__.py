"""A model of the time that the CUDA kernels take, from their machine code; no GPU is needed."""
