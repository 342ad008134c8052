# Blocks of the backbone keep only their input and are recomputed in the backward pass: less memory,
# the same results.
model = dict(backbone=dict(with_cp=True))
