# The network as the paper's figures show it. Of its training only the code was at hand, so the
# schedule is the code's.
_base_ = "dual-sam_vit-b_code_mas3k.py"

model = dict(
    backbone=dict(scrambled_values=False, train_gates=True),
    crossed_skips=False,
    consistent_votes=True,
)
