"""What runs around a call: torch.compile, torch.export, torch.func or forward-mode derivatives."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation surrounds this call."""
    if tracing():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def tracing() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` is tracing this call."""
    is_compiling = getattr(torch.compiler, "is_compiling", None)  # torch >= 2.3
    return is_compiling is not None and is_compiling()


def compiling() -> bool:
    """Whether ``torch.compile`` is tracing this call; not ``torch.export``, for other programs."""
    # torch >= 2.7; the public function is taken for true in all that torch.compile traces
    exporting = getattr(torch.compiler, "_is_exporting_flag", False)
    return tracing() and torch.compiler.is_dynamo_compiling() and not exporting


def surely_equal(size: int, other: int) -> bool:
    """Whether two sizes agree; False for sizes that a traced graph leaves open.

    Such sizes are not compared, which would bind the graph to them: it would be made anew for
    others.
    """
    if not tracing():
        return size == other
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(size == other)


@contextmanager
def untraced() -> Iterator[None]:
    """Keep what is computed inside out of the graph of ``torch.jit.trace``, as a constant."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
