"""How many optimizer steps the rows give; jobs that would train none, or not on every rank, are refused. Pure."""

import math

from trl_contract.jobfile import JobFile
from trl_trainer.errors import UserError


def total(job: JobFile, rows: int) -> int | None:
    """Return the optimizer steps of a resolved job on `rows` training rows; None where packing decides.

    UserError when the job would train 0 steps or has fewer rows than ranks.
    """
    training = job.spec.training
    world = job.world_size
    batch = training.per_device_batch_size * world
    if job.kind == "GRPOJob":
        # TRL takes whole batches of prompts and drops the rest.
        prompts = batch * training.gradient_accumulation_steps // job.spec.grpo.num_generations
        if rows < prompts:
            raise UserError(
                "DataFormatError",
                f"dataset.train: {rows} prompts are fewer than one step needs: perDeviceBatchSize"
                f" {training.per_device_batch_size} x {world} processes x gradientAccumulationSteps"
                f" {training.gradient_accumulation_steps} / numGenerations {job.spec.grpo.num_generations} = {prompts}",
            )
        per_epoch = rows // prompts * job.spec.grpo.num_iterations
    else:
        if rows < world:
            raise UserError(
                "DataFormatError",
                f"dataset.train: {rows} rows are fewer than the {world} processes: give more rows, or lower"
                " numNodes or numProcPerNode",
            )
        if job.kind == "SFTJob" and job.spec.sft.packing:
            return training.max_steps
        per_epoch = math.ceil(math.ceil(rows / batch) / training.gradient_accumulation_steps)
    return training.max_steps or math.ceil(training.epochs * per_epoch)
