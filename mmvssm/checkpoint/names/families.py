"""Key maps of all families: what their files call the weights of our models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from .efficient_vmamba import EFFICIENT_VMAMBA_LINEAR, EFFICIENT_VMAMBA_TRUNK
from .local_vmamba import LOCAL_VMAMBA_TRUNK
from .msvmamba import MSVMAMBA_LINEAR, MSVMAMBA_TRUNK
from .necks import LOCAL_VIM_DETECTOR
from .rules import Rule
from .vim import (
    LOCAL_VIM_DENSE,
    LOCAL_VIM_TRUNK,
    PLAIN_CLASSIFICATION,
    PLAIN_LINEAR,
    VIM_DENSE,
    VIM_TRUNK,
    count_parts,
)
from .vmamba import (
    FIRST_RELEASE,
    FIRST_RELEASE_ARCHS,
    VMAMBA_CLASSIFICATION,
    VMAMBA_DENSE,
    VMAMBA_LINEAR,
    VMAMBA_TRUNK,
)

Rules = tuple[Rule, ...]


@dataclass(frozen=True)
class KeyMap:
    """Names of one family, as rules that follow one another and are read both ways.

    Attributes:
        trunk: Rules for the backbone's keys.
        tasks: For each task further rules, for norms, head and pyramid. A name of ours that ends
            in ``@i`` is part ``i`` of one tensor, which the file holds in parts.
        linear: Expression of the weights that files may hold as 1x1 convolutions.
        container: Entries of a file in which the project's own code looks for a classifier's
            weights.
        dense_container: The same for a detector's or segmentor's.
        stacked: Expression of the tensors whose parts get a new first axis; the parts of others
            are joined along their first axis.
        count_parts: From a key and all tensors of ours to the number of its parts, None for a
            whole tensor; None if no tensor is held in parts.
        first_release: Rules from the names of the first release to the current ones.
        first_release_archs: Our archs that had weights in the first release; what is trained here
            is written with its names, which both generations of the code read.
        detector: Rules for what stands outside of the backbone in detectors with a pyramid of the
            project's own as neck.
    """

    trunk: Rules
    tasks: Mapping[str, Rules]
    linear: str
    container: tuple[str, ...]
    dense_container: tuple[str, ...] = ("state_dict",)
    stacked: str = r"\.(x_proj_weight|dt_projs_weight|dt_projs_bias)$"
    count_parts: Callable[[str, Mapping[str, Tensor]], int | None] | None = None
    first_release: Rules = ()
    first_release_archs: tuple[str, ...] = ()
    detector: Rules = ()


_VMAMBA_TASKS = {"classification": VMAMBA_CLASSIFICATION, "dense": VMAMBA_DENSE}

#: Key maps by family.
KEY_MAPS = {
    "vmamba": KeyMap(
        trunk=VMAMBA_TRUNK,
        tasks=_VMAMBA_TASKS,
        linear=VMAMBA_LINEAR,
        container=("model",),
        first_release=FIRST_RELEASE,
        first_release_archs=FIRST_RELEASE_ARCHS,
    ),
    "efficient_vmamba": KeyMap(
        trunk=EFFICIENT_VMAMBA_TRUNK,
        tasks=_VMAMBA_TASKS,
        linear=EFFICIENT_VMAMBA_LINEAR,
        container=("state_dict",),
        first_release=FIRST_RELEASE,
    ),
    "local_vmamba": KeyMap(
        trunk=LOCAL_VMAMBA_TRUNK,
        tasks=_VMAMBA_TASKS,
        linear=VMAMBA_LINEAR,
        container=("state_dict",),
        first_release=FIRST_RELEASE,
    ),
    "msvmamba": KeyMap(
        trunk=MSVMAMBA_TRUNK,
        tasks=_VMAMBA_TASKS,
        linear=MSVMAMBA_LINEAR,
        # the detectors and segmentors of the first version read one, those of the third the other
        container=("model", "model_ema"),
        first_release=FIRST_RELEASE,
    ),
    "vim": KeyMap(
        trunk=VIM_TRUNK,
        tasks={"classification": PLAIN_CLASSIFICATION, "dense": VIM_DENSE},
        linear=PLAIN_LINEAR,
        container=("model",),
        # segmentors are mmsegmentation's, detectors Detectron2's
        dense_container=("state_dict", "model"),
        count_parts=count_parts,
    ),
    "local_vim": KeyMap(
        trunk=LOCAL_VIM_TRUNK,
        tasks={"classification": PLAIN_CLASSIFICATION, "dense": LOCAL_VIM_DENSE},
        linear=PLAIN_LINEAR,
        container=("state_dict",),
        count_parts=count_parts,
        detector=LOCAL_VIM_DETECTOR,
    ),
}
