"""Batches of which every process loads its share: together they are the batches that one process would load."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

from torch.utils.data import Sampler

from spatialfeat.data.dataset import AugmentedRow, EpochSampler


class SharedBatches(Sampler[list[AugmentedRow]]):
    """The rows of `sampler` in batches of `batch_size`; iterating gives process `rank` of `size` its rows of each.

    Shares of a batch differ by one row at most. In the last, smaller batch some may be empty.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, *, rank: int = 0, size: int = 1) -> None:
        self._sampler, self._batch_size, self._rank, self._size = sampler, batch_size, rank, size

    def __len__(self) -> int:
        return math.ceil(len(self._sampler) / self._batch_size)

    def __iter__(self) -> Iterator[list[AugmentedRow]]:
        for batch in self.whole():
            yield self.share(batch)

    def share(self, batch: list[AugmentedRow]) -> list[AugmentedRow]:
        """This process's rows of a batch."""
        return batch[self._rank :: self._size]

    def whole(self) -> Iterator[list[AugmentedRow]]:
        """The batches with the rows of all processes."""
        rows = iter(self._sampler)
        while batch := list(islice(rows, self._batch_size)):
            yield batch
