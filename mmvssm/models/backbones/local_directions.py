"""Scan directions of LocalMamba's networks, as found for each layer by its search.

`LocalMamba: Visual State Space Model with Windowed Selective Scan
<https://arxiv.org/abs/2403.09338>`_
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mmvssm.ops import routes

from ..layers import SEARCH_DIRECTIONS

Directions = tuple[tuple[str, ...], ...]

#: All directions in every layer: the network whose training searches for the best ones.
SEARCH = "search"

#: Directions of every layer if none were searched.
UNSEARCHED = ("h", "h_flip", "w2", "w2_flip")


def _table(text: str) -> Directions:
    """Parse a table with a line per layer and a word per direction."""
    return tuple(tuple(line.split()) for line in text.strip().splitlines())


LOCAL_VIM_TINY = _table("""
    h v_flip w7 w7_flip
    h_flip w2_flip w7 w7_flip
    h h_flip v w7
    h h_flip v v_flip
    h h_flip v v_flip
    h h_flip v v_flip
    h_flip v v_flip w7
    h_flip v v_flip w2_flip
    h h_flip v v_flip
    h h_flip v v_flip
    h v v_flip w2
    h v v_flip w2_flip
    h h_flip v_flip w7
    h_flip v v_flip w2
    h h_flip v v_flip
    h v w2 w2_flip
    v v_flip w2 w7
    h h_flip v w2
    h h_flip w2_flip w7
    v v_flip w2 w2_flip
""")

LOCAL_VMAMBA_TINY = _table("""
    h h_flip w7 w7_flip
    h_flip v_flip w2 w2_flip
    h_flip v_flip w2_flip w7
    h_flip v v_flip w2
    h h_flip v_flip w2_flip
    h_flip v_flip w2 w2_flip
    h w2_flip w7 w7_flip
    h h_flip v v_flip
    h v_flip w7 w7_flip
    h_flip v w2 w7_flip
    v v_flip w2 w7_flip
    h h_flip v_flip w2_flip
    v_flip w2_flip w7 w7_flip
    h_flip v_flip w2_flip w7_flip
    h_flip v w7 w7_flip
""")

LOCAL_VMAMBA_SMALL = _table("""
    h v v_flip w7_flip
    h h_flip v w7
    h_flip v v_flip w7
    h_flip v w2_flip w7
    h_flip v w2_flip w7
    h_flip v_flip w2 w7_flip
    h_flip v v_flip w7
    h v v_flip w7
    h v v_flip w7
    h v v_flip w7_flip
    h h_flip v v_flip
    h v v_flip w2
    v v_flip w2_flip w7
    h h_flip v w2
    h_flip v v_flip w7_flip
    h h_flip v v_flip
    h v v_flip w7_flip
    h v v_flip w7_flip
    h h_flip v_flip w7
    h_flip v_flip w2_flip w7
    h_flip v v_flip w7_flip
    v v_flip w7 w7_flip
    h v v_flip w7_flip
    h_flip v v_flip w2
    h v v_flip w2_flip
    h h_flip v w7
    h h_flip w7 w7_flip
    h v_flip w2 w2_flip
    h v_flip w2 w7
    h v v_flip w7_flip
    h_flip v w2_flip w7
    h_flip v_flip w7 w7_flip
    h v w7 w7_flip
""")


def read_directions(
    directions: str | Sequence[Sequence[str]] | None, depth: int
) -> tuple[Directions, str]:
    """Return the directions of every layer and the kind of merge.

    Args:
        directions: A list of direction names for each layer, all of the same length;
            ``'search'`` for the eight directions of the search in every layer; None for
            :data:`UNSEARCHED` in every layer.
        depth: Number of layers of the network.

    Returns:
        Names by layer, and the kind of :class:`mmvssm.models.layers.RouteMerge`.

    Raises:
        ValueError: If the number of layers differs from ``depth``, or a layer has no directions,
            another number than the other layers or an unknown one; the message names the layer.
    """
    if directions is None:
        return (UNSEARCHED,) * depth, "gated"
    if isinstance(directions, str):
        if directions != SEARCH:
            raise ValueError(
                f"directions must be {SEARCH!r} or a list of names for each layer,"
                f" got {directions!r}"
            )
        return (SEARCH_DIRECTIONS,) * depth, "search"
    if not isinstance(directions, Sequence):
        raise ValueError(
            f"directions must be {SEARCH!r} or a list of names for each layer, got {directions!r}"
        )
    if len(directions) != depth:
        got = f"got {len(directions)}"
        if len(directions) < depth:
            raise ValueError(
                f"directions must have one list for each of {depth} layers, {got}: layer"
                f" {len(directions)} has none"
            )
        raise ValueError(
            f"directions must have one list for each of {depth} layers, {got}: there is no layer"
            f" {depth}"
        )
    rows = []
    for layer, row in enumerate(directions):
        if isinstance(row, str) or not isinstance(row, Sequence) or not row:
            raise ValueError(
                f"directions of layer {layer} must be a list of names such as {UNSEARCHED},"
                f" got {row!r}"
            )
        for name in row:
            try:
                routes.check_direction(name)
            except ValueError as error:
                raise ValueError(f"directions of layer {layer}: {error}") from None
        rows.append(tuple(row))
    # assume that the most common number of directions is the intended one
    ((width, _),) = Counter(map(len, rows)).most_common(1)
    for layer, row in enumerate(rows):
        if len(row) != width:
            raise ValueError(
                f"directions of layer {layer} must be {width} names, as in the other layers,"
                f" got {len(row)}: {row}"
            )
    return tuple(rows), "gated"
