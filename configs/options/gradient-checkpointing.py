# Blocks of the backbone keep their input alone and are computed again in the backward pass:
# less memory, the same numbers.
model = dict(backbone=dict(with_cp=True))
