"""Key names of the pyramids of released plain backbones, mapped to our ``neck``."""

from .rules import Rename, has

# Vim's detectors have the pyramid inside the backbone; levels are numbered by the logarithm of
# their stride, and the map has stride 16.
SIMPLE_FEATURE_PYRAMID = (
    Rename(None, "neck.levels."),
    Rename("simfp_2.0.", "neck.levels.x4.deconv1."),
    Rename("simfp_2.1.", "neck.levels.x4.deconv_norm."),
    Rename("simfp_2.3.", "neck.levels.x4.deconv2."),
    Rename("simfp_2.4.", "neck.levels.x4.conv1."),
    Rename("simfp_2.5.", "neck.levels.x4.conv2."),
    Rename("simfp_3.0.", "neck.levels.x2.deconv1."),
    Rename("simfp_3.1.", "neck.levels.x2.conv1."),
    Rename("simfp_3.2.", "neck.levels.x2.conv2."),
    Rename("simfp_4.0.", "neck.levels.x1.conv1."),
    Rename("simfp_4.1.", "neck.levels.x1.conv2."),
    Rename("simfp_5.1.", "neck.levels.x0_5.conv1."),
    Rename("simfp_5.2.", "neck.levels.x0_5.conv2."),
    Rename("neck.levels.{level}.conv{i}.norm.", "neck.levels.{level}.norm{i}."),
)

# LocalVim's detectors have the pyramid as neck, and norms of the same class in their heads.
LOCAL_VIM_DETECTOR = (
    Rename(None, "neck.levels."),
    Rename("neck.fpn1.0.", "neck.levels.x4.deconv1."),
    Rename("neck.fpn1.1.", "neck.levels.x4.deconv_norm."),
    Rename("neck.fpn1.3.", "neck.levels.x4.deconv2."),
    Rename("neck.fpn2.0.", "neck.levels.x2.deconv1."),
    *(
        Rename(f"neck.{original}_convs.{i}.{name}.", f"neck.levels.{level}.{ours}{number}.")
        for i, level in enumerate(("x4", "x2", "x1", "x0_5"))
        for number, original in ((1, "lateral"), (2, "fpn"))
        for name, ours in (("conv", "conv"), ("norm_layer", "norm"))
    ),
    Rename(".norm_layer.", ".ln."),
)

# Segmentation: mmsegmentation's Feature2Pyramid, inside Vim's backbone.
FEATURE2PYRAMID = (
    Rename(None, "neck.upsample_2x."),
    Rename("fpn1.", "neck.upsample_4x."),
    Rename("fpn2.", "neck.upsample_2x.", has("neck.", "upsample_4x.0.weight")),
)
