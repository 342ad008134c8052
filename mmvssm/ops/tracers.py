"""Detection of tracers and transforms: torch.compile, torch.export, torch.func, forward mode."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Return whether this call runs inside ``torch.func`` or forward-mode differentiation."""
    if tracing():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


# torch >= 2.3 has the public functions; torch.compile evaluates the older one to True
_is_compiling = getattr(torch.compiler, "is_compiling", None) or torch._utils.is_compiling
_is_dynamo_compiling = getattr(torch.compiler, "is_dynamo_compiling", None) or _is_compiling
Function = TypeVar("Function", bound=Callable)


def tracing() -> bool:
    """Return whether ``torch.compile`` or ``torch.export`` is tracing this call."""
    return _is_compiling()


def compiling() -> bool:
    """Return whether ``torch.compile``, but not ``torch.export``, is tracing this call.

    Before torch 2.7 a strict ``torch.export`` counts as ``torch.compile``.
    """
    # torch.compile evaluates the public function to True in everything that it traces
    exporting = getattr(torch.compiler, "_is_exporting_flag", False)
    return tracing() and _is_dynamo_compiling() and not exporting


def surely_equal(size: int, other: int) -> bool:
    """Return whether two sizes are equal; False for dynamic sizes of a traced graph.

    Comparing dynamic sizes would specialise the graph on them and cause recompilations.
    """
    if not tracing():
        return size == other
    from torch.fx.experimental import symbolic_shapes

    if not hasattr(symbolic_shapes, "statically_known_true"):  # torch < 2.2
        return size == other
    return symbolic_shapes.statically_known_true(size == other)


#: Whether ``torch.compile`` traces objects such as route sets: since torch 2.7.
TRACES_ROUTES = hasattr(torch.compiler, "is_exporting")


def between_graphs(function: Function) -> Function:
    """Run a function between the graphs of a ``torch.compile`` that cannot trace routes.

    Up to torch 2.6 it stops with an error at objects such as a route set, or at sizes that a graph
    leaves open.
    """
    return function if TRACES_ROUTES else torch.compiler.disable(function)


@contextmanager
def untraced() -> Iterator[None]:
    """Make results computed inside the block constants of a ``torch.jit.trace`` graph."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
