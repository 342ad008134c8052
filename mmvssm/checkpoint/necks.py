"""Key names of the pyramids inside released plain backbones, in terms of ``neck``."""

# Detection: levels by the logarithm of their stride, of a map of stride 16.
SIMPLE_FEATURE_PYRAMID = (
    (r"^simfp_2\.0\.", "neck.levels.x4.deconv1."),
    (r"^simfp_2\.1\.", "neck.levels.x4.deconv_norm."),
    (r"^simfp_2\.3\.", "neck.levels.x4.deconv2."),
    (r"^simfp_2\.4\.", "neck.levels.x4.conv1."),
    (r"^simfp_2\.5\.", "neck.levels.x4.conv2."),
    (r"^simfp_3\.0\.", "neck.levels.x2.deconv1."),
    (r"^simfp_3\.1\.", "neck.levels.x2.conv1."),
    (r"^simfp_3\.2\.", "neck.levels.x2.conv2."),
    (r"^simfp_4\.0\.", "neck.levels.x1.conv1."),
    (r"^simfp_4\.1\.", "neck.levels.x1.conv2."),
    (r"^simfp_5\.1\.", "neck.levels.x0_5.conv1."),
    (r"^simfp_5\.2\.", "neck.levels.x0_5.conv2."),
    (r"^(neck\.levels\.\w+)\.conv(\d)\.norm\.", r"\1.norm\2."),
)

# Segmentation, patches of 16: mmsegmentation's Feature2Pyramid.
FEATURE2PYRAMID = (
    (r"^fpn1\.", "neck.upsample_4x."),
    (r"^fpn2\.", "neck.upsample_2x."),
)
# The same of patches of 8, whose maps have twice the sides: rescales 2, 1, 0.5, 0.25.
FEATURE2PYRAMID_OF_8 = ((r"^fpn1\.", "neck.upsample_2x."),)
