"""Whole videos, longest first, shared out evenly, and the same way wherever it is worked out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinydata import make_table

from spatialfeat.config import ExtractConfig
from spatialfeat.data.dataset import EpochBatches
from spatialfeat.data.frames import Video, group_videos
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.plan import Shard, parse_shard, share_out


@pytest.fixture(scope="module")
def table_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


def videos_of(lengths: list[int], folder: Path) -> list[Video]:
    table = make_table(folder, [f"v{video}_{frame}" for video, length in enumerate(lengths) for frame in range(length)])
    return group_videos([table])


def lengths_of(shares: list[list[Video]]) -> list[list[int]]:
    return [[len(video) for video in share] for share in shares]


def test_the_longest_go_first_to_whom_has_least(table_dir: Path) -> None:
    # 9 to the first, 7 and 6 to the second, 5 to the first with 9, 4 to the second with 13.
    shares = share_out(videos_of([4, 9, 6, 7, 5], table_dir), 2)
    assert lengths_of(shares) == [[9, 5], [4, 6, 7]]


def test_more_shares_than_videos_leave_some_empty(table_dir: Path) -> None:
    assert lengths_of(share_out(videos_of([2, 3], table_dir), 4)) == [[3], [2], [], []]
    assert share_out([], 2) == [[], []]


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), shares=st.integers(1, 5))
def test_every_video_is_in_one_share_and_the_largest_is_near_the_best(
    lengths: list[int], shares: int, table_dir: Path
) -> None:
    videos = videos_of(lengths, table_dir)
    dealt = share_out(videos, shares)
    assert len(dealt) == shares
    assert sorted(video.video_id for share in dealt for video in share) == sorted(video.video_id for video in videos)
    loads = [sum(sizes) for sizes in lengths_of(dealt)]
    # Whatever the lengths: when the last video of the fullest share was dealt, that share had at most the mean of
    # the others.
    assert max(loads) <= sum(lengths) / shares + max(lengths) * (1 - 1 / shares)
    assert [share.index(video) for share in dealt for video in share] == [
        index for share in dealt for index in range(len(share))
    ]


@pytest.mark.parametrize(
    ("text", "expected", "name"),
    [
        (None, Shard(1, 1), "run.json"),
        ("1/1", Shard(1, 1), "run.json"),
        ("2/4", Shard(2, 4), "run-2of4.json"),
        ("12/12", Shard(12, 12), "run-12of12.json"),
    ],
)
def test_shards(text: str | None, expected: Shard, name: str) -> None:
    assert parse_shard(text) == expected
    assert expected.run_record_name == name


@pytest.mark.parametrize("text", ["0/4", "5/4"])
def test_shards_count_from_one(text: str) -> None:
    with pytest.raises(SpatialfeatError, match=rf"--shard {text}: shares count from 1, so pass 1/4 to 4/4 .*array=1-4"):
        ExtractConfig(shard=text)


@pytest.mark.parametrize("text", ["", "2", "2/", "a/4", "-1/4", "1/0", "1 / 4", "1/4/4"])
def test_other_texts_are_no_shards(text: str) -> None:
    with pytest.raises(SpatialfeatError, match=rf"--shard {text}: must be I/N, the I-th of N shares"):
        ExtractConfig(shard=text)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_of_batches_are_the_batches_of_one_process(size: int) -> None:
    def batches(rank: int, size: int) -> EpochBatches:
        made = EpochBatches(10, 4, seed=4, rank=rank, size=size)
        made.epoch = 2
        return made

    whole = list(batches(0, 1))
    assert whole == list(batches(0, size).whole())
    assert [len(batch) for batch in whole] == [4, 4, 2]
    assert sorted(frame.position for batch in whole for frame in batch) == list(range(10))
    assert len({frame.seed for batch in whole for frame in batch}) == 10
    shares = [list(batches(rank, size)) for rank in range(size)]
    for number, batch in enumerate(whole):
        mine = [share[number] for share in shares]
        assert sorted(frame for part in mine for frame in part) == sorted(batch)
        assert np.ptp([len(part) for part in mine]) <= 1
    assert len(batches(0, size)) == 3
    other = batches(0, 1)
    other.epoch = 3
    assert list(other) != whole
