_base_ = "dual-sam_vit-b_mas3k.py"
train_dataloader = dict(dataset=dict(data_root="data/UFO120/train"))
val_dataloader = test_dataloader = dict(dataset=dict(data_root="data/UFO120/test"))
