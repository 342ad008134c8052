# torch.compile for the training step. The first iterations compile, which takes minutes. More
# arguments of torch.compile may be added here.
compile = dict(mode="default")
