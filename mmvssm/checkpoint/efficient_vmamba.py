"""Key names of EfficientVMamba's checkpoints; many are VMamba's, old ones included."""

import re

from .vmamba import VMAMBA_TRUNK


def _block_of_item(match: re.Match) -> str:
    """Stages of inverted residuals are flat sequences whose item 0 changes the layout."""
    stage, item, name = match.groups()
    return f"layers.{stage}.blocks.{int(item) - 1}.{name}."


EFFICIENT_VMAMBA_TRUNK = (
    # the item behind the last block, whatever its number, is the downsampling
    (r"^layers\.(\d+)\.\d+\.(reduction|norm|1|3)\.", r"layers.\1.downsample.\2."),
    (r"^layers\.(\d+)\.(\d+)\.(conv_pw|conv_dw|se|conv_pw2)\.", _block_of_item),
    (r"\.conv_pw\.0\.", ".expand."),
    (r"\.conv_pw\.1\.", ".norm1."),
    (r"\.conv_dw\.0\.", ".dwconv."),
    (r"\.conv_dw\.1\.", ".norm2."),
    (r"\.se\.conv_reduce\.", ".se.fc1."),
    (r"\.se\.conv_expand\.", ".se.fc2."),
    (r"\.conv_pw2\.0\.", ".project."),
    (r"\.conv_pw2\.1\.", ".norm3."),
    (r"\.(op|self_attention)\.", ".mixer.ss2d."),
    (r"\.(\d+)\.conv_branch\.0\.", r".\1.mixer.conv_branch.dwconv."),
    (r"\.(\d+)\.conv_branch\.1\.", r".\1.mixer.conv_branch.norm."),
    (r"\.(\d+)\.conv_branch\.3\.", r".\1.mixer.conv_branch.pwconv."),
    (r"\.(\d+)\.se\.(norm|global_reduce|channel_select)\.", r".\1.mixer.gate.\2."),
    *VMAMBA_TRUNK,
)

EFFICIENT_VMAMBA_LINEAR = r"\.(in_proj|out_proj|mlp\.fc1|mlp\.fc2|reduction|fc)\.weight$"
