"""How many optimizer steps the rows give; jobs that would train none, or not on every rank, are refused. Pure."""

import math
from typing import TypeVar

from trl_contract.evaluation import EvaluationBase
from trl_contract.jobfile import JobFile
from trl_contract.spec import GRPOSpec
from trl_contract.training import Checkpoint
from trl_trainer.errors import UserError
from trl_trainer.stage import Stage

Section = TypeVar("Section", EvaluationBase, Checkpoint)


def of_rows(job: JobFile, number: int) -> int:
    """Return the optimizer steps of a resolved job on `number` training rows. UserError where a rank would get none."""
    training, world = job.spec.training, job.world_size
    if number < world:
        raise UserError(
            "DataFormatError",
            f"dataset.train: {number} rows are fewer than the {world} processes: give more rows, or lower"
            " numNodes or numProcPerNode",
        )
    batches = math.ceil(number / (training.per_device_batch_size * world))
    return _steps(job, math.ceil(batches / training.gradient_accumulation_steps))


def of_prompts(job: JobFile[GRPOSpec], number: int) -> int:
    """Return the same for a kind that samples completions: TRL takes whole batches of prompts and drops the rest."""
    training, groups, world = job.spec.training, job.spec.grpo.num_generations, job.world_size
    sampled, name = job.spec.steps_per_generation, "gradientAccumulationSteps"
    if job.spec.grpo.steps_per_generation is not None:
        name = "stepsPerGeneration"
    prompts = training.per_device_batch_size * world * sampled // groups
    if number < prompts:
        raise UserError(
            "DataFormatError",
            f"dataset.train: {number} prompts are fewer than one step needs: perDeviceBatchSize"
            f" {training.per_device_batch_size} x {world} processes x {name} {sampled} / numGenerations {groups} ="
            f" {prompts}",
        )
    return _steps(job, number // prompts * job.spec.steps_per_sampling)


def total(job: JobFile, stage: Stage, number: int) -> int:
    """Return the optimizer steps of a resolved job on `number` training rows, which are packed if they are to be."""
    return stage.total_steps(job, number) or of_rows(job, number)


def by_epochs(job: JobFile, stage: Stage, number: int) -> JobFile:
    """Return the resolved job with every everyEpochs as the everySteps that they are on `number` training rows: the
    nearest number, one at least."""
    training = job.spec.training.model_copy(update={"epochs": 1.0, "max_steps": None})
    one = job.model_copy(update={"spec": job.spec.model_copy(update={"training": training})})

    def in_steps(section: Section) -> Section:
        if section.every_epochs is None:
            return section
        every = max(1, round(section.every_epochs * total(one, stage, number)))
        return section.model_copy(update={"every_steps": every, "every_epochs": None})

    sections = {"evaluation": in_steps(job.spec.evaluation), "checkpoint": in_steps(job.spec.checkpoint)}
    return job.model_copy(update={"spec": job.spec.model_copy(update=sections)})


def warmup(job: JobFile, total: int) -> int:
    """Return how many of a resolved job's `total` optimizer steps warm up: never all of them, or nothing would be
    trained at the peak of the learning rate, and nothing learnt in a single step, which begins at 0."""
    training = job.spec.training
    wanted = training.warmup_steps
    if wanted is None:
        assert training.warmup_ratio is not None, "the job is resolved"
        wanted = math.ceil(training.warmup_ratio * total)
    return min(wanted, total - 1)


def decay(share: float, warmup: int, total: int) -> int:
    """Return how many of `total` steps decay: the share, but no more than the warm-up leaves, and one at least."""
    return max(1, min(math.ceil(share * total), total - warmup))


def _steps(job: JobFile, per_epoch: int) -> int:
    training = job.spec.training
    assert training.max_steps is not None or training.epochs is not None, "the job is resolved"
    return training.max_steps or math.ceil((training.epochs or 0) * per_epoch)
