"""The order of rows is dataset.seed's, another one in each epoch, and the same again after a resume: the seed of an
epoch, of all kinds, and the order of grpo's rows.

TRL 1.16 seeds grpo's sampler with training.seed and lets its generator run on from epoch to epoch, so that a run that
is resumed in its second epoch takes the rows in the order of the first. The one override of `_get_train_sampler`;
tests/trainer/test_row_order.py fails when upstream's sampler is another one.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import Sampler


def seed_of(trainer: Any) -> Callable[[], int]:
    """Return what gives the seed of the epoch that a TRL trainer begins, or goes on with in its middle.

    Not by set_epoch: accelerate does not pass it on to a sampler whose first batches a resume skips.
    """
    return lambda: trainer.args.data_seed + int(trainer.state.epoch or 0)


class TakesRowsInOrder:
    """Before GRPOTrainer in the order of classes: its rows come in the order of `args.data_seed`."""

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        repeating = super()._get_train_sampler(dataset)  # type: ignore[misc]
        return _InEpochs(repeating, seed_of(self)) if repeating.shuffle else repeating


class _InEpochs(Sampler[int]):
    """A RepeatSampler whose generator is seeded anew for each epoch."""

    def __init__(self, repeating: Any, seed: Callable[[], int]) -> None:
        self._repeating = repeating
        self._seed = seed

    def __iter__(self) -> Iterator[int]:
        self._repeating.generator.manual_seed(self._seed())
        yield from self._repeating

    def __len__(self) -> int:
        return len(self._repeating)
