"""Several processes take the rows of each optimizer step in equal numbers and with alike tokens; test_resume.py has
the same after a kill in the second epoch, and test_loading.py the losses of one process and of two."""

import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from trainer_kit import TRAIN_ONLY, Warm, job_file, preference_pairs, write_jsonl

from trl_trainer.stages.balanced import Balanced, BalancesRanks

BATCH, RANKS, MICRO_STEPS = 4, 3, 5
STEP = BATCH * RANKS * MICRO_STEPS
_RNG = random.Random(3)
LENGTHS = [int(_RNG.lognormvariate(5, 1)) + 1 for _ in range(7 * STEP + 11)]
TOKENS = [length + _RNG.randint(1, length) for length in LENGTHS]


def order(epoch: int = 0, seed: int | None = 5, *, sort: bool = True) -> list[int]:
    return list(
        Balanced(
            lengths=LENGTHS, tokens=TOKENS, batch=BATCH, ranks=RANKS, micro_steps=MICRO_STEPS, sort=sort,
            seed=None if seed is None else lambda: seed + epoch,
        )
    )  # fmt: skip


@pytest.mark.parametrize("epoch", [0, 1])
def test_each_optimizer_step_has_the_rows_that_one_process_would_take(epoch: int) -> None:
    """Also a contract with accelerate, whose sampler that one process has."""
    alone = SeedableRandomSampler(LENGTHS, data_seed=5, generator=torch.Generator())
    alone.set_epoch(epoch)
    expected, found = list(alone), order(epoch)
    assert order(1 - epoch) != found == order(epoch)
    for start in range(0, len(LENGTHS), STEP):
        assert sorted(found[start : start + STEP]) == sorted(expected[start : start + STEP])
    assert found[7 * STEP :] == expected[7 * STEP :], "the last rows, too few for a step, as they come"
    assert sorted(order(seed=None)[:STEP]) == list(range(STEP)), "not shuffled"


def test_unsorted_each_micro_step_has_the_rows_that_fall_into_it_and_ranks_alike_tokens() -> None:
    slot, found = BATCH * RANKS, order(seed=None, sort=False)
    starts = range(0, 7 * STEP, slot)
    assert [sorted(found[start : start + slot]) for start in starts] == [
        list(range(start, start + slot)) for start in starts
    ]

    def longest(rows: list[int]) -> int:
        """Tokens of the ranks on which the others wait."""
        shares = [sum(TOKENS[row] for row in rows[start : start + BATCH]) for start in range(0, 7 * STEP, BATCH)]
        return sum(max(shares[start : start + RANKS]) for start in range(0, len(shares), RANKS))

    assert longest(found) < 0.9 * longest(list(range(7 * STEP)))


@pytest.mark.parametrize(
    ("losses", "sorted_"),
    [
        (["sigmoid"], True),
        (["bco_pair"], True),
        (["sigmoid", "sft"], False),
        (["aot"], False),
        (["aot_unpaired"], False),
    ],
)
def test_losses_of_a_whole_micro_batch_get_rows_of_any_length(losses: list[str], sorted_: bool) -> None:
    class Trainer(BalancesRanks):
        args = SimpleNamespace(
            world_size=2, per_device_train_batch_size=2, gradient_accumulation_steps=3, data_seed=5,
            train_sampling_strategy="sequential", dataloader_num_workers=0, dataloader_pin_memory=False,
        )  # fmt: skip
        accelerator = SimpleNamespace(prepare=lambda loader: loader)
        train_dataset = Dataset.from_list([{"input_ids": [0] * (n + 1), "length": n + 1} for n in range(12)])
        data_collator = None
        loss_types = losses

    found = list(Trainer().get_train_dataloader().sampler)
    assert sorted(found[:4]) == ([8, 9, 10, 11] if sorted_ else [0, 1, 2, 3])


def test_ranks_get_alike_tokens_and_micro_batches_alike_lengths() -> None:
    plain, found = list(range(7 * STEP)), order()[: 7 * STEP]

    def spent(rows: list[int]) -> tuple[float, float]:
        """What the ranks would need in all if none waited, as a share of what they need: without padding, and with."""
        batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        slots = [batches[start : start + RANKS] for start in range(0, len(batches), RANKS)]
        free = sum(max(sum(TOKENS[row] for row in batch) for batch in slot) for slot in slots)
        padded = sum(max(BATCH * max(LENGTHS[row] for row in batch) for batch in slot) for slot in slots)
        return sum(TOKENS[row] for row in rows) / RANKS / free, sum(LENGTHS[row] for row in rows) / RANKS / padded

    assert spent(plain)[0] < 0.8 < 0.93 < spent(found)[0]
    assert spent(plain)[1] < 0.45 < 0.5 < spent(found)[1]


SEEN = """
from trl import DPOTrainer
compute_loss = DPOTrainer.compute_loss
def seen(self, model, inputs, *args, **kwargs):
    if model.training:
        print("tokens", inputs["attention_mask"].sum().item(), "of", inputs["attention_mask"].numel(), flush=True)
    return compute_loss(self, model, inputs, *args, **kwargs)
DPOTrainer.compute_loss = seen
"""


def test_two_ranks_train_in_that_order(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    rows = preference_pairs(32)
    for i, row in enumerate(rows):
        row["chosen"][0]["content"] = " ".join(["thank you"] * (1 + i))
    write_jsonl(tmp_path / "train.jsonl", rows)
    spec = {
        "training": {"epochs": 2, "maxSteps": None, "gradientAccumulationSteps": 2},
        "evaluation": {"enabled": False}, "dataset": {"evalSplit": 0},
    }  # fmt: skip
    ended = warm.run(job_file(tmp_path, model_folder, spec=spec), prelude=[SEEN, TRAIN_ONLY])
    assert ended.codes == [0, 0], ended.logs
    first, second = ([int(n) for n in re.findall(r"tokens (\d+) of", log)] for log in ended.logs)
    assert len(first) == len(second) == 2 * 2 * 2
    assert all(abs(a - b) <= 0.1 * max(a, b) for a, b in zip(first, second, strict=True)), (first, second)
    assert all(long > short for ranks in (first, second) for long, short in zip(ranks[::2], ranks[1::2], strict=True))
    one, other = ({*first[start : start + 4], *second[start : start + 4]} for start in (0, 4))
    assert one != other, "another order in each epoch"
