"""Key names of Vim's and LocalVim's checkpoints, in terms of ours."""

from .necks import FEATURE2PYRAMID, SIMPLE_FEATURE_PYRAMID

_PLAIN = (
    (r"^net\.", ""),  # detectors
    (r"^patch_embed\.proj\.", "patch_embed.conv1."),
    (r"^cls_token_head$", "cls_token@0"),
    (r"^cls_token_tail$", "cls_token@1"),
)

# The backward scan's parameters stand behind those of the forward scan.
VIM_TRUNK = (
    *_PLAIN,
    (r"\.A_log$", ".A_logs@0"),
    (r"\.A_b_log$", ".A_logs@1"),
    (r"\.D$", ".Ds@0"),
    (r"\.D_b$", ".Ds@1"),
    (r"\.conv1d\.(weight|bias)$", r".conv1d.\1@0"),
    (r"\.conv1d_b\.(weight|bias)$", r".conv1d.\1@1"),
    (r"\.x_proj\.weight$", ".x_proj_weight@0"),
    (r"\.x_proj_b\.weight$", ".x_proj_weight@1"),
    (r"\.dt_proj\.(weight|bias)$", r".dt_projs_\1@0"),
    (r"\.dt_proj_b\.(weight|bias)$", r".dt_projs_\1@1"),
)

LOCAL_VIM_TRUNK = (
    *_PLAIN,
    (r"\.A_log_(\d+)$", r".A_logs@\1"),
    (r"\.D_(\d+)$", r".Ds@\1"),
    (r"\.conv1d_(\d+)\.(weight|bias)$", r".conv1d.\2@\1"),
    (r"\.x_proj_(\d+)\.weight$", r".x_proj_weight@\1"),
    (r"\.dt_proj_(\d+)\.(weight|bias)$", r".dt_projs_\2@\1"),
    (r"\.mixer\.attn\.", ".mixer.merge.attn."),
    (r"\.mixer\.multi_scan\.", ".mixer.merge."),
)

# classifiers return one output
PLAIN_CLASSIFICATION = (
    (r"^norm_f\.", "norm0."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
    (r"^outnorm_\d+\.", None),
)


def plain_dense(
    final_norm: str | None = None,
    out_norms: bool = True,
    pyramid: tuple[tuple[str, str], ...] = FEATURE2PYRAMID,
) -> tuple[tuple[str, str | None], ...]:
    """Rules for the norms, head and pyramids of a detector's or segmentor's backbone.

    Args:
        final_norm: The norm that has the weights of the classifier's last; None for none.
        out_norms: Whether outputs pass norms of their own.
        pyramid: Rules for the names of the segmentor's pyramid.
    """
    return (
        (r"^head\.", None),
        (r"^norm_f\.", None if final_norm is None else f"{final_norm}."),
        (r"^outnorm_(\d+)\.", r"norm\1." if out_norms else None),
        *SIMPLE_FEATURE_PYRAMID,
        *pyramid,
    )


PLAIN_DENSE = plain_dense()

PLAIN_LINEAR = r"\.(in_proj|out_proj|global_reduce|channel_select|fc)\.weight$"
