# The network as in the paper's figures. Its training is known only from the code, so the schedule
# is the code's.
_base_ = "dual-sam_vit-b_code_mas3k.py"

model = dict(
    backbone=dict(scrambled_values=False, train_gates=True),
    crossed_skips=False,
    consistent_votes=True,
)
