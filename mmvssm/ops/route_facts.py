"""Facts about route tables, as the registered ops take them."""

from __future__ import annotations

import enum


class RouteFacts(enum.IntFlag):
    """Facts about a pair of route tables, found once when the tables are made.

    ``torch.ops.mmvssm.selective_scan_2d`` and its backward op take them as the integer
    ``route_facts``, so that no call inspects the tables again. They hold for one number of pixels
    and of output rows, and they must be true: with ``CHECKED`` set, the kernels use the entries
    without a range check. 0 is always safe: every call then checks the entries, which synchronises
    with a GPU, and assumes the worst case of every other fact.

    ``RouteFacts`` of ``ops/csrc/common/scan_common.h`` holds the same values.
    """

    CHECKED = 1
    """Every entry lies in ``[-1, P)``, every entry of ``out_routes`` in ``[-1, num_out)``."""
    READ_REPEATS = 2
    """Some route reads a pixel more than once."""
    READ_GAPS = 4
    """Some route leaves a pixel unread."""
    OUT_REPEATS = 8
    """Some route writes an output row more than once."""
    OUT_GAPS = 16
    """Some route leaves an output row unwritten."""
    DISJOINT = 32
    """Both tables are the same, and no pixel belongs to two routes."""
    UNION_GAPS = 64
    """Some output row is written by no route at all."""

    @classmethod
    def reliable(cls, given: int) -> int:
        """Return the facts that kernels may rely on: the worst case unless ``CHECKED`` is set."""
        if given & cls.CHECKED:
            return given
        return int(
            cls.READ_REPEATS | cls.READ_GAPS | cls.OUT_REPEATS | cls.OUT_GAPS | cls.UNION_GAPS
        )
