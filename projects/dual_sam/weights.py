"""Renaming of weights between our names and those of SAM's image encoder and the published code.

As a command it converts a checkpoint of a complete model to our names, or with ``--to-original``
from our names to the published ones:

    python -m projects.dual_sam.weights dual_sam.pth ours.pth
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from mmvssm.checkpoint import CheckpointError, read_checkpoint, select_weights, write_checkpoint
from mmvssm.families.rules import Rename
from mmvssm.messages import join_names

_LAYER, _BLOCK = "backbone.layers.{i}.", "backbone.prompts.blocks.{i}."
#: Prefixes of names in the published code and in ours, outside the decoders.
_PREFIXES = {
    "sam.image_encoder.pos_embed": "backbone.pos_embed",
    "sam.image_encoder.patch_embed.proj.": "backbone.patch_embed.projection.",
    "sam.image_encoder.neck.": "backbone.channel_reduction.",
    "sam.image_encoder.blocks.{i}.": _LAYER,
    "adapter1.{i}.": _LAYER + "ffn.adapters.0.",
    "adapter2.{i}.": _LAYER + "ffn.adapters.1.",
    "global_adapter.blocks.{i}.": _BLOCK,
    "global_adapter.patch_embed.proj.": "backbone.prompts.patch_embed.",
    "global_adapter.pos_embed": "backbone.prompts.pos_embed",
}
#: What follows these prefixes.
_PARTS = {
    _LAYER: {
        "norm1.": "ln1.",
        "norm2.": "ln2.",
        "mlp.lin1.": "ffn.layers.0.0.",
        "mlp.lin2.": "ffn.layers.1.",
        "attn.qkv.qkv.{parameter}": "attn.qkv.{parameter}",
        "attn.qkv.linear_a_q.": "attn.qkv.lora_query.0.",
        "attn.qkv.linear_b_q.": "attn.qkv.lora_query.1.",
        "attn.qkv.linear_a_v.": "attn.qkv.lora_value.0.",
        "attn.qkv.linear_b_v.": "attn.qkv.lora_value.1.",
    },
    _LAYER + "ffn.adapters.{j}.": {"fc.0.": "down.", "fc.2.": "up.", "IN.": "norm."},
    _BLOCK: {
        "attn.": "self_attn.",
        "CA.linear_q.": "cross_attn.query.",
        "CA.linear_k.": "cross_attn.key.",
        "CA.linear_v.": "cross_attn.value.",
        "CA.linear_output.": "cross_attn.output.",
        "mlp2.lin1.": "self_ffn.layers.0.0.",
        "mlp2.lin2.": "self_ffn.layers.1.",
        "mlp.lin1.": "cross_ffn.layers.0.0.",
        "mlp.lin2.": "cross_ffn.layers.1.",
        "pw1.": "to_image.",
        "pw2.": "to_gamma.",
    },
}
_UPSAMPLE = {"conv_up.": "up.", "conv_fu.": "fuse."}
_FUSION = {"pw1.": "reduce.", "se.fc.": "squeeze.", "pw2.": "dilate."}
_HEAD = {"0.": "up.", "1.up.": "fuse.", "1.pre.": "predict."}
#: Modules of the image's decoder: names in the published code and in ours, and what follows them.
_DECODER = (
    ("de12", "", "skips.3.0.", _UPSAMPLE),
    ("de9", "", "skips.2.0.", _UPSAMPLE),
    ("de6", "{i}.", "skips.1.{i}.", _UPSAMPLE),
    ("de3", "{i}.", "skips.0.{i}.", _UPSAMPLE),
    *((f"up{3 - level}", "", f"ups.{level}.", _UPSAMPLE) for level in range(3)),
    *((f"fu{4 - level}", "", f"fusions.{level}.", _FUSION) for level in range(4)),
    *((f"pre{4 - level}", "", f"heads.{level}.", _HEAD) for level in range(4)),
)


def _decoder_rules() -> Iterator[Rename]:
    """Yield the rules of both decoders; the copy's names end in one more digit."""
    for name, number, ours, parts in _DECODER:
        gamma = name + ("1" if name.startswith("de") else name[-1])
        for decoder, stem in enumerate((name, gamma)):
            for part, our_part in parts.items():
                original = f"desam.{stem}.{number}{part}"
                yield Rename(original, f"decoders.{decoder}.{ours}{our_part}")


#: Rules in order, see :class:`mmvssm.families.rules.Rename`.
RULES = (
    *(Rename(original, ours) for original, ours in _PREFIXES.items()),
    *(
        Rename(prefix + original, prefix + ours)
        for prefix, parts in _PARTS.items()
        for original, ours in parts.items()
    ),
    *_decoder_rules(),
    # constants of unknown value in the published code
    Rename(None, "backbone.prompts.image_gates"),
    Rename(None, "backbone.prompts.gamma_gates"),
    # parts of SAM that are never called
    Rename("sam.prompt_encoder.", None),
    Rename("sam.mask_decoder.", None),
)


def key_to_ours(key: str) -> str | None:
    """Return our name for a key of the published code, or None if the key is unused."""
    for rule in RULES:
        renamed = rule.to_ours(key)
        if renamed is None:
            return None
        key = renamed
    return key


def key_to_original(key: str) -> str | None:
    """Return the published code's name for one of our keys, or None if it has none."""
    name = key
    for rule in reversed(RULES):
        renamed = rule.to_original(name, key, ())
        if renamed is None:
            return None
        name = renamed
    return name


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of SAM's image encoder in mmpretrain's names.

    Args:
        weights: State dict of SAM, of mmpretrain's ``ViTSAM`` or of a complete Dual-SAM.
    """
    found = {}
    for key, value in weights.items():
        original = f"sam.{key}" if key.startswith("image_encoder.") else key
        ours = key_to_ours(original)
        if ours is not None:
            found[ours.removeprefix("backbone.")] = value
    return found


def load_encoder(encoder: nn.Module, path: str | Path) -> None:
    """Load SAM's image encoder, fitting its position tables to the size of the images.

    Args:
        encoder: The encoder; adapters, low-rank updates and prompts keep their values.
        path: See ``pretrained`` of :class:`~.network.DualViTSAM`.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is not a checkpoint or lacks weights of the encoder.
    """
    if not Path(path).exists():
        raise FileNotFoundError(
            f"there is no checkpoint {str(path)!r} of SAM's image encoder: download SAM ViT-B"
            " (sam_vit_b_01ec64.pth of facebookresearch/segment-anything), or set"
            " model.backbone.pretrained to another file"
        )
    weights = encoder_weights(select_weights(read_checkpoint(path)).tensors)
    added = ("lora_", ".adapters.", "prompts.")
    wanted = [key for key in encoder.state_dict() if not any(part in key for part in added)]
    missing = [key for key in wanted if key not in weights]
    if missing:
        raise CheckpointError(
            f"{str(path)!r} lacks weights of SAM's image encoder: {join_names(missing)}"
        )
    encoder.load_state_dict({key: weights[key] for key in wanted}, strict=False)


def main() -> None:
    """Convert the names of the weights in a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("src", type=Path, metavar="SRC", help="checkpoint of a complete Dual-SAM")
    parser.add_argument("dst", type=Path, metavar="DST", help="file to write, .pth or .safetensors")
    parser.add_argument(
        "--to-original", action="store_true", help="convert our names to the published ones"
    )
    parser.add_argument("--force", action="store_true", help="overwrite DST if it exists")
    args = parser.parse_args()
    rename = key_to_original if args.to_original else key_to_ours
    known = "backbone." if args.to_original else "desam."
    try:
        weights = select_weights(read_checkpoint(args.src)).tensors
        if not any(key.startswith(known) for key in weights):
            raise CheckpointError(f"{str(args.src)!r} has no key that starts with {known!r}")
        renamed = {rename(key): value for key, value in weights.items()}
        renamed.pop(None, None)
        path = write_checkpoint(args.dst, dict(state_dict=renamed, meta={}), force=args.force)
    except (OSError, ValueError, CheckpointError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {path}, {len(renamed)} of {len(weights)} tensors")


if __name__ == "__main__":
    main()
