"""Whole videos shared out among processes and job arrays: every file is written by one of them."""

from __future__ import annotations

from collections.abc import Sequence

from spatialfeat.data.frames import Video


def share_out(videos: Sequence[Video], shares: int) -> list[list[Video]]:
    """Deal the videos out, longest first, each to the share that has the fewest frames by then.

    Depends on the videos alone, so processes that never speak to each other agree. No share has more than 4/3 of the
    frames of the best possible largest share (Graham's bound).

    Returns:
        `shares` lists, some of them empty if there are fewer videos; each in the order of `videos`.
    """
    loads = [0] * shares
    share_of = {}
    for index in sorted(range(len(videos)), key=lambda index: (-len(videos[index]), index)):
        share = loads.index(min(loads))
        loads[share] += len(videos[index])
        share_of[index] = share
    return [[videos[index] for index in range(len(videos)) if share_of[index] == share] for share in range(shares)]
