"""The order of grpo's rows is dataset.seed's, another one in each epoch (test_resume.py: the same after a resume); who
makes batches of rows changes nothing."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from trainer_kit import KILL, Warm, at_step, job_file, metrics, preference_pairs, write_jsonl
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


def test_workers_make_the_same_batches_also_after_a_kill(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    losses = []
    counted = "import multiprocessing; print('workers:', len(multiprocessing.active_children()), flush=True)"
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        write_jsonl(folder / "train.jsonl", preference_pairs(20))
        spec = {
            "training": {"maxSteps": 4}, "dataset": {"workers": workers, "evalSplit": 0},
            "checkpoint": {"everySteps": 2},
        }  # fmt: skip
        if workers:
            kill = at_step(4, f"{counted}; {KILL}", saved=2)
            assert "workers: 2" in warm.run(job_file(folder, model_folder, spec=spec), prelude=kill).logs[1]
        ended = warm.run(job_file(folder, model_folder, spec=spec, attempt=int(workers > 0)))
        assert ended.codes == [0, 0], ended.logs
        losses.append({line["step"]: line["loss"] for line in metrics(folder) if "loss" in line})
    assert losses[0] == losses[1]
