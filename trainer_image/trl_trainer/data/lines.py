"""The rows as they were written down: a file of JSON lines that is read in parts."""

import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trl_trainer.stage import Row

PART = 2000
"""Rows of a part: some megabytes at most kinds of data, so that parts are many and each is small."""


@dataclass(frozen=True)
class Lines:
    """A file of JSON lines. Nothing of it is kept in memory but where its parts begin."""

    path: Path
    number: int
    """Rows."""

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from file

    def take(self, indexes: Iterable[int]) -> list[Row]:
        """Return the rows at these places, in the order of the file."""
        wanted = set(indexes)
        return [json.loads(line) for i, line in enumerate(self) if i in wanted]

    def picked(self, places: Iterable[int]) -> Iterator[bytes]:
        """Yield the lines at these places, in this order; keeps 8 bytes for each line of the file."""
        with self.path.open("rb") as file:
            for place in places:
                file.seek(self._begins[place])
                yield file.readline()

    @cached_property
    def _begins(self) -> "array[int]":
        begins, at = array("q"), 0
        for line in self:
            begins.append(at)
            at += len(line)
        return begins

    def parts(self) -> Iterator[tuple[int, int]]:
        """Yield where each part begins, in bytes, and how many rows it has."""
        begin = offset = count = 0
        for line in self:
            offset, count = offset + len(line), count + 1
            if count == PART:
                yield begin, count
                begin, count = offset, 0
        if count:
            yield begin, count


def read_part(path: str, begin: int, count: int) -> Iterator[Row]:
    """Yield `count` rows from the byte `begin` on."""
    with open(path, "rb") as file:
        file.seek(begin)
        for _ in range(count):
            yield json.loads(file.readline())
