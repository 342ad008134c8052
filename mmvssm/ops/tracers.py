"""What runs around a call: torch.compile, torch.export, torch.func or forward-mode derivatives."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation surrounds this call."""
    if tracing():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


# the functions of torch >= 2.3, or the one before, which torch.compile takes for true
_is_compiling = getattr(torch.compiler, "is_compiling", None) or torch._utils.is_compiling
_is_dynamo_compiling = getattr(torch.compiler, "is_dynamo_compiling", None) or _is_compiling
Function = TypeVar("Function", bound=Callable)


def tracing() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` is tracing this call."""
    return _is_compiling()


def compiling() -> bool:
    """Whether ``torch.compile`` is tracing this call; not ``torch.export``, for other programs.

    Before torch 2.7 a strict ``torch.export`` is taken for ``torch.compile``.
    """
    # the public function is taken for true in all that torch.compile traces
    exporting = getattr(torch.compiler, "_is_exporting_flag", False)
    return tracing() and _is_dynamo_compiling() and not exporting


def surely_equal(size: int, other: int) -> bool:
    """Whether two sizes agree; False for sizes that a traced graph leaves open.

    Such sizes are not compared, which would bind the graph to them: it would be made anew for
    others.
    """
    if not tracing():
        return size == other
    from torch.fx.experimental import symbolic_shapes

    if not hasattr(symbolic_shapes, "statically_known_true"):  # torch < 2.2
        return size == other
    return symbolic_shapes.statically_known_true(size == other)


def between_graphs(function: Function) -> Function:
    """Let a function run between the graphs of a ``torch.compile`` that cannot trace routes.

    That of torch before 2.3, which stops at an object such as a route set with an error.
    """
    if hasattr(torch.compiler, "is_compiling"):
        return function
    return torch.compiler.disable(function)


@contextmanager
def untraced() -> Iterator[None]:
    """Keep what is computed inside out of the graph of ``torch.jit.trace``, as a constant."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
