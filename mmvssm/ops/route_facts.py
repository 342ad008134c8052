"""What kernels may rely on about the tables of a route set."""

from __future__ import annotations

from enum import IntFlag


class RouteFacts(IntFlag):
    """Facts about route tables; the bits of ``ops/csrc/common/scan_common.h``.

    Without ``CHECKED`` the kernels look at the tables themselves and rely on nothing else.
    """

    #: All entries lie in range.
    CHECKED = 1
    #: A route reads a pixel twice.
    READ_REPEATS = 2
    #: A route leaves a pixel unread.
    READ_GAPS = 4
    #: A route writes an output row twice.
    OUT_REPEATS = 8
    #: A route leaves an output row unwritten.
    OUT_GAPS = 16
    #: Outputs go where inputs were read, and no two routes share a pixel.
    DISJOINT = 32
    #: Some output row is in no route.
    UNION_GAPS = 64
