"""What follows when a GPU's memory is too small: activations are recomputed, if that was the trainer's to decide; then
smaller micro-batches, and more of them in each step."""

from trl_contract.jobfile import AttemptFile
from trl_operator.api.job import Job
from trl_operator.api.status import Adaptation, JobStatus
from trl_operator.plan.outcome import Cause
from trl_operator.plan.reasons import REASONS

_OUT = "OutOfGPUMemory"
_TRAINING = ("training", "")
"""What a rank was at whose micro-batch was too large; a trainer of version 0.1 does not say. A smaller one helps
neither loading nor an evaluation, which has a batch of its own."""


def adapt(job: Job, status: JobStatus, cause: Cause) -> Adaptation | None:
    """Return how the next attempt trains after `cause`; None if it trains as the one before, or there is none: another
    cause, the job is to fail then, or its batch cannot be halved.

    Where the trainer had decided that activations are kept, its estimate was wrong: that is mended first, whatever
    runPolicy.onOutOfMemory says.
    """
    if cause.reason != _OUT or cause.activity not in _TRAINING:
        return None
    size = _size(job, status)
    recompute = _has_kept(job, status)
    if not recompute and (job.cluster.run_policy.on_out_of_memory != "ShrinkMicroBatch" or size % 2):
        return None
    training = job.training.with_micro_batch(size if recompute else size // 2).training
    return Adaptation(
        attempt=(status.attempt or 0) + 1,
        reason=cause.reason,
        per_device_batch_size=training.per_device_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        gradient_checkpointing=recompute or None,
    )


def _has_kept(job: Job, status: JobStatus) -> bool:
    """Return whether activations were kept because the estimate said so. A trainer whose job file has a micro-batch of
    the attempt's own does not trust it again."""
    told = status.effective is not None and status.effective.gradient_checkpointing is False
    return told and job.training.training.gradient_checkpointing is None and not status.adaptations


def attempt_file(status: JobStatus) -> AttemptFile:
    """Return what the current attempt is told beside the file that all attempts share."""
    size = status.adaptations[-1].per_device_batch_size if status.adaptations else None
    return AttemptFile(attempt=status.attempt or 0, per_device_batch_size=size)


def hint(job: Job, status: JobStatus, cause: Cause) -> str:
    """Return what to do about a job that has failed; where memory was short, by how the last attempt has used it."""
    if cause.reason == "OutOfHostMemory":
        limit = (job.cluster.resources.limits or {}).get("memory")
        now = "is not set" if limit is None else f"is {limit}"
        return f"resources.limits.memory {now}. {REASONS[cause.reason].hint}"
    if cause.reason != _OUT:
        return REASONS[cause.reason].hint
    size, length = _size(job, status), "training.maxLength"
    if job.training.max_length is None:
        length = "grpo.generation.maxCompletionLength"
    other = f"lower {length}, set training.gradientCheckpointing, train an adapter (peft), or use more processes"
    if cause.activity == "evaluating":
        return "Lower evaluation.perDeviceBatchSize and create a new job."
    if cause.activity not in _TRAINING:
        return "Use more processes, which share the model, or peft.method lora or qlora, and create a new job."
    if size == 1:
        return f"One row is too much, perDeviceBatchSize is 1: {other}, and create a new job."
    if size % 2:
        return (
            f"perDeviceBatchSize {size} cannot be halved: choose a smaller one and more gradientAccumulationSteps,"
            f" {other}, and create a new job."
        )
    return (
        "Halve training.perDeviceBatchSize and double gradientAccumulationSteps, as runPolicy.onOutOfMemory"
        f" ShrinkMicroBatch does by itself, or {other}, and create a new job."
    )


def _size(job: Job, status: JobStatus) -> int:
    """Return perDeviceBatchSize of the current attempt."""
    return attempt_file(status).per_device_batch_size or job.training.training.per_device_batch_size
