"""The reference's descriptions of VMamba."""

from mmvssm.models import VMamba

from ..cases import Case, register_reader
from ..compare import MalformedCase, UnsupportedCase
from ..models import ModelSpec, hierarchical
from .options import choice, read_dt_rank, require, take

# The reference chooses the mixer by a string: a core, then suffixes. Cores by all their names.
CORES = {
    ("v0", "v0seq"): dict(gate=True, force_fp32=True),
    ("v01", "v02", "v03", "v2"): dict(force_fp32=True),
    ("v05", "v04", "v1", "v3", "v4"): dict(force_fp32=False),
    ("v051d", "v31d"): dict(force_fp32=False, scan="unidi"),
    ("v052d", "v32d"): dict(force_fp32=False, scan="bidi"),
    ("v052dc", "v32dc"): dict(force_fp32=False, type="CascadeSS2D"),
    ("m0",): dict(type="ScalarDecaySS2D"),
}
BROKEN_CORES = ("xv1a", "xv2a", "xv3a")
SUFFIXES = {
    "noz": dict(gate=False),
    "nozact": dict(gate_act=False),
    "oact": dict(out_act=True),
    "no32": dict(force_fp32=False),
    "onnone": dict(out_norm="none"),
    "ondwconv3": dict(out_norm="dwconv3"),
    "oncnorm": dict(out_norm="cnorm"),
    "onsoftmax": dict(out_norm="softmax"),
    "onsigmoid": dict(out_norm="sigmoid"),
}
STEMS = {"v1": "patch", "v2": "conv"}
DOWNSAMPLES = {"v1": "patch_merge", "v2": "conv2", "v3": "conv3"}


def read_forward_type(forward_type: str) -> dict:
    """Return arguments of the mixer for a string such as ``'v05_ondwconv3_noz'``.

    Raises:
        MalformedCase: If a part is unknown, given twice, or contradicts another.
        UnsupportedCase: If the reference itself cannot run it.
    """
    where = f"forward_type {forward_type!r}"
    core, *suffixes = forward_type.split("_")
    if core in BROKEN_CORES:
        raise UnsupportedCase(f"{where}: core {core} has no working reference")
    arguments = next((dict(given) for names, given in CORES.items() if core in names), None)
    if arguments is None:
        raise MalformedCase(f"{where}: unknown core {core!r}")
    if core in ("v0", "v0seq") and suffixes:
        raise MalformedCase(f"{where}: this core takes no suffix")
    arguments.setdefault("gate", True)
    given: set[str] = set()
    for suffix in suffixes:
        if suffix not in SUFFIXES:
            raise MalformedCase(f"{where}: unknown suffix {suffix!r}")
        ((name, arguments[name]),) = SUFFIXES[suffix].items()
        if name in given:
            raise MalformedCase(f"{where}: {name} is set twice")
        given.add(name)
    if core == "m0" and arguments["gate"]:
        raise UnsupportedCase(f"{where}: m0 with a gate has no working reference")
    return arguments


def arguments(build: dict) -> dict:
    """Return the arguments of :class:`mmvssm.models.VMamba`."""
    require(build, norm_eps=[1e-5], post_norm=[False, None])
    dims, mixer = list(build["dims"]), None
    if build["ssm_ratio"] > 0:
        mixer = dict(
            read_forward_type(build["forward_type"]),
            **take(build, "d_state", "ssm_ratio", conv_bias=True, ssm_init="v0"),
            dt_rank=read_dt_rank(build, dims),
            d_conv=build.get("conv_kernel", 3) or 0,
            act=build.get("ssm_act", "silu"),
        )
    arch = dict(
        take(build, "depths", patch_size=4, patch_norm=True, mlp_ratio=0.0, mlp_act="gelu"),
        embed_dims=dims,
        stem=choice(build, "patch_embed", STEMS),
        downsample=choice(build, "downsample", DOWNSAMPLES),
        norm=build.get("norm_layer", "ln"),
        gated_mlp=build.get("gmlp", False),
        pos_embed=bool(build.get("pos_embed", False)),
        mixer=mixer,
    )
    return dict(
        take(build, img_size=224, drop_path_rate=0.0),
        arch=arch,
        in_channels=build.get("in_chans", 3),
        odd_size="crop" if str(build.get("odd_size", "")).startswith("crop") else "pad",
    )


@register_reader("vmamba")
def read(case: Case) -> ModelSpec:
    """Read a case of VMamba."""
    build = case.meta["build"]
    return hierarchical("vmamba", VMamba, arguments(build), build["num_classes"])
