"""The order in which several processes take the rows of dpo, reward and sft: equal numbers, and about as many tokens.

A process that has longer rows than the others keeps all of them waiting, in every block of the model: FSDP2 gathers its
weights together. The rows of an optimizer step are those that one process would take (a seeded shuffle, another one in
each epoch, or the order of the rows); only who takes which of them, and in which micro-step, is decided here. So the
gradient of the step is what it is in any other order, but for rounding, where the loss is a mean over rows or over the
tokens of the step. A loss that is one micro-batch's (`TOGETHER`) would depend on the lengths that come together: with
one of these each row stays in the micro-step that it falls into, and only who takes it there is decided.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy
import torch
from torch.utils.data import DataLoader, Sampler

from trl_trainer.stages import row_order

TOGETHER = {"sft", "aot", "aot_unpaired"}
"""TRL's losses of dpo in which the rows of a micro-batch depend on each other: a mean over its tokens, and two that
sort its pairs."""
TOKENS = ("input_ids", "prompt_ids", "chosen_ids", "rejected_ids")


class BalancesRanks:
    """Before a TRL trainer in the order of classes: several processes take its rows in the order of `Balanced`. By the
    one method that transformers gives for that; a single process takes them as transformers does."""

    args: Any
    accelerator: Any
    train_dataset: Any
    data_collator: Any

    def get_train_dataloader(self) -> DataLoader[Any]:
        args = self.args
        if args.world_size == 1:
            found: DataLoader[Any] = super().get_train_dataloader()  # type: ignore[misc]
            return found
        lengths, tokens = sizes(self.train_dataset)
        sampler = Balanced(
            lengths=lengths,
            tokens=tokens,
            batch=args.per_device_train_batch_size,
            ranks=args.world_size,
            micro_steps=args.gradient_accumulation_steps,
            sort=TOGETHER.isdisjoint(getattr(self, "loss_types", ())),
            seed=row_order.seed_of(self) if args.train_sampling_strategy == "random" else None,
        )
        loader = DataLoader(
            self.train_dataset.remove_columns("length"),
            batch_size=args.per_device_train_batch_size,
            sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared


def sizes(rows: Any) -> tuple[list[int], list[int]]:
    """Return for each row the tokens of its longest sequence, and of all its sequences."""
    names = [name for name in TOKENS if name in rows.column_names]
    table = rows.select_columns([*names, "length"]).with_format("arrow")[:]
    chunks = [[chunk.value_lengths().to_numpy() for chunk in table[name].chunks] for name in names]
    return table["length"].to_pylist(), sum(numpy.concatenate(each) for each in chunks).tolist()


class Balanced(Sampler[int]):
    """Rows in the order in which accelerate deals them out: `batch` of them to each rank in turn.

    Of each optimizer step the longest rows come first (`lengths`: of a row's longest sequence, to which the others of a
    micro-batch are padded), so that each micro-step has rows that are alike; within a micro-step each rank gets `batch`
    rows and about as many `tokens`. Without `sort` each micro-step has the rows that fall into it. The last rows of an
    epoch, too few for a step, are taken as they come.
    """

    def __init__(
        self,
        *,
        lengths: Sequence[int],
        tokens: Sequence[int],
        batch: int,
        ranks: int,
        micro_steps: int,
        sort: bool,
        seed: Callable[[], int] | None,
    ) -> None:
        """`seed`: that of the epoch that begins or is gone on with; None takes the rows as they are, in every epoch."""
        self._lengths = lengths
        self._tokens = tokens
        self._batch = batch
        self._ranks = ranks
        self._micro_steps = micro_steps
        self._sort = sort
        self._seed = seed

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        slot = self._batch * self._ranks
        step = slot * self._micro_steps
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            if len(rows) < step:
                yield from rows
                return
            if self._sort:
                rows = sorted(rows, key=lambda row: -self._lengths[row])
            for first in range(0, step, slot):
                yield from self._dealt(rows[first : first + slot])

    def _order(self) -> list[int]:
        """Return all rows in the order of this epoch: accelerate's own, which is one process's."""
        if self._seed is None:
            return list(range(len(self)))
        generator = torch.Generator().manual_seed(self._seed())
        found: list[int] = torch.randperm(len(self), generator=generator).tolist()
        return found

    def _dealt(self, rows: list[int]) -> Iterator[int]:
        """Yield rank after rank's: the row with most tokens first, each to whom has fewest of those with room."""
        shares: list[list[int]] = [[] for _ in range(self._ranks)]
        loads = [0] * self._ranks
        for row in sorted(rows, key=lambda row: -self._tokens[row]):
            rank = min((r for r in range(self._ranks) if len(shares[r]) < self._batch), key=loads.__getitem__)
            shares[rank].append(row)
            loads[rank] += self._tokens[row]
        for share in shares:
            yield from share
