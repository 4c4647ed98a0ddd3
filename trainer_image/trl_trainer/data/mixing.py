"""Which rows of a mixture are trained on, in what order, and which are held out: by the seed alone. Pure functions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy


def mix(
    numbers: Sequence[int], weights: Sequence[float], seed: int, num_held_out: Callable[[int], int]
) -> tuple[Any, Any]:
    """Return the places of the rows to train on, in their order, and those of the held-out rows: int64.

    The sources lie one after the other, with `numbers` rows each. Of each row there are as many as its source's weight
    says, the rest of it by lot, and of each source at least one. Of the different rows that are left,
    `num_held_out(their number)` are held out, and never trained on as well.
    """
    generator = numpy.random.default_rng(seed)
    pairs = zip(numbers, weights, strict=True)
    copies = numpy.concatenate([_copies(generator, number, weight) for number, weight in pairs])
    used = numpy.flatnonzero(copies)
    held_out = numpy.sort(generator.permutation(used)[: num_held_out(len(used))])
    copies[held_out] = 0
    return generator.permutation(numpy.repeat(numpy.arange(len(copies)), copies)), held_out


def _copies(generator: Any, number: int, weight: float) -> Any:
    """Return how often each of `number` rows is there."""
    found = numpy.full(number, int(weight))
    drawn = round(number * (weight - int(weight)))
    found[generator.permutation(number)[: drawn if weight >= 1 else max(1, drawn)]] += 1
    return found


def per_source(places: Any, numbers: Sequence[int]) -> list[int]:
    """Return how many of the places are in each source."""
    ends = numpy.cumsum(numbers)
    return [int(count) for count in numpy.bincount(numpy.searchsorted(ends, places, side="right"),
                                                   minlength=len(ends))]  # fmt: skip
