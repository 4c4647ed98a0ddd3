"""rewardAggregation geometric_mean: one more reward for TRL, which only adds."""

import math
from collections.abc import Sequence
from typing import Any, Protocol


class Scored(Protocol):
    """A reward that knows what it returned last."""

    last: list[float | None]


class GeometricMean:
    """The weighted geometric mean of what the rewards returned for the same completions: TRL calls its functions one
    after the other, and this one comes last."""

    __name__ = "geometric_mean"

    def __init__(self, functions: Sequence[Scored], weights: Sequence[float]) -> None:
        self._functions = functions
        self._weights = weights

    def __call__(self, prompts: list[Any], completions: list[Any], **_: Any) -> list[float | None]:
        return [mean(row, self._weights) for row in zip(*(function.last for function in self._functions), strict=True)]


def mean(scores: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Return the product of scores ** (weight / sum of weights): 0 where one is 0 or below. Scores that are None, and
    weights of 0, count for nothing; None where nothing is left."""
    judged = [(score, weight) for score, weight in zip(scores, weights, strict=True) if score is not None and weight]
    if not judged:
        return None
    if any(score <= 0 for score, _ in judged):
        return 0.0
    return math.exp(sum(weight * math.log(score) for score, weight in judged) / sum(weight for _, weight in judged))
