"""Key names of VMamba's checkpoints: first release, then current code, then ours."""

VMAMBA_TRUNK = (
    # names of the first release (January 2024) -> names of the current code
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.(weight|bias)$", r"classifier.head.\1"),
    # names of the current code -> ours
    (r"^patch_embed\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.2\.", "patch_embed.norm1."),
    (r"^patch_embed\.5\.", "patch_embed.conv2."),
    (r"^patch_embed\.7\.", "patch_embed.norm2."),
    (r"^layers\.", "stages."),
    (r"\.blocks\.(\d+)\.norm\.", r".blocks.\1.norm1."),
    (r"\.op\.", ".mixer."),
    (r"\.mixer\.conv2d\.1\.", ".mixer.conv2d."),  # scalar-decay models
    (r"\.mixer\.out_norm\.1\.", ".mixer.out_norm."),  # depthwise convolution as out-norm
    (r"\.mixer\.out_norm\.2\.", ".mixer.out_norm.1."),  # layer norm and convolution
    (r"\.downsample\.1\.", ".downsample.conv."),
    (r"\.downsample\.3\.", ".downsample.norm."),
)

VMAMBA_CLASSIFICATION = (
    (r"^classifier\.norm\.", "norm3."),
    (r"^classifier\.head\.", "head.fc."),
    (r"^outnorm\d+\.", None),
)

VMAMBA_DENSE = (
    (r"^outnorm(\d+)\.", r"norm\1."),
    (r"^classifier\.", None),
)

VMAMBA_LINEAR = r"\.(in_proj|out_proj|fc1|fc2|reduction|fc)\.weight$"
