# torch.compile for the training step. The first iterations compile, which takes minutes. Further
# arguments of torch.compile can be added here.
compile = dict(mode="default")
