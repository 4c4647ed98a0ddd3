"""The order of grpo's rows is dataset.seed's, another one in each epoch (test_resume.py: the same after a resume)."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from trl import GRPOConfig, GRPOTrainer

from trl_trainer.stages import grpo


@pytest.fixture
def order(model_folder: Path, tmp_path: Path) -> Any:
    """Return the rows of an epoch, in their order, for the seeds of the job."""

    def order(
        trainer: Any = grpo.Trainer, *, seed: int = 1, data_seed: int = 1, epoch: float = 0, **more: Any
    ) -> list[int]:
        args = GRPOConfig(
            output_dir=str(tmp_path), seed=seed, data_seed=data_seed, bf16=False, use_cpu=True, report_to=[],
            per_device_train_batch_size=4, num_generations=2, **more,
        )  # fmt: skip
        rows = datasets.Dataset.from_list([{"prompt": f"{i}"} for i in range(32)])
        made = trainer(
            model=str(model_folder),
            args=args,
            train_dataset=rows,
            reward_funcs=lambda prompts, **_: [0.0] * len(prompts),
        )
        made.state.epoch = epoch
        return list(dict.fromkeys(made._get_train_sampler()))

    return order


def test_the_order_follows_dataset_seed_alone_and_changes_with_the_epoch(order: Any) -> None:
    first = order()
    assert sorted(first) == list(range(32))
    assert order(seed=2) == first
    assert order(data_seed=2) != first
    # Where an epoch is resumed in its middle, TRL's state says how much of it is done.
    assert order(epoch=1.0) == order(epoch=1.5) != first
    assert order(shuffle_dataset=False) == list(range(32))


def test_trls_own_sampler_still_takes_the_other_seed(order: Any) -> None:
    """When this fails, the override may be needless."""
    assert order(GRPOTrainer) != order(GRPOTrainer, seed=2)
    assert order(GRPOTrainer) == order(GRPOTrainer, data_seed=2)
