# ImageNet-1k with LocalMamba's trainer, which EfficientVMamba shares: the differences from
# in1k_300e.py.
_base_ = "./in1k_300e.py"

model = dict(
    train_cfg=dict(augments=[dict(type="Mixup", alpha=0.2), dict(type="CutMix", alpha=1.0)])
)

# timm's `rand-m9-mstd0.5`, without `inc1`: colour, contrast etc. are multiplied by 0.1 to 1.9, and
# a higher level keeps more bits and solarises less (bits are rounded up here, down in timm).
train_pipeline = [
    step
    if step.type != "RandAugment"
    else dict(
        step,
        policies=[
            dict(type="AutoContrast"),
            dict(type="Equalize"),
            dict(type="Invert"),
            dict(type="Rotate", magnitude_range=(0, 30)),
            dict(type="Posterize", magnitude_range=(-1, 3)),
            dict(type="Solarize", magnitude_range=(0, 256)),
            dict(type="SolarizeAdd", magnitude_range=(0, 110)),
            *(
                dict(type=name, magnitude_range=(-0.9, 0.9), random_negative_prob=0.0)
                for name in ("ColorTransform", "Contrast", "Brightness", "Sharpness")
            ),
            *(
                dict(type=name, magnitude_range=(0, most), direction=direction)
                for name, most in (("Shear", 0.3), ("Translate", 0.45))
                for direction in ("horizontal", "vertical")
            ),
        ],
    )
    for step in _base_.train_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(optimizer=dict(weight_decay=0.04), clip_grad=dict(max_norm=1.0))

# warm-up by epoch, from 1e-7 to the full rate after 20 epochs
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-4, end=21),
    dict(type="mmvssm.CosineAnnealingLR", eta_min=1e-6, begin=20, convert_to_iter_based=True),
]
