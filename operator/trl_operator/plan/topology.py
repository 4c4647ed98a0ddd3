"""How many rows an optimizer step has."""

from trl_operator.api.job import Job


def batch_size(job: Job) -> int:
    """Return the rows per optimizer step (grpo: completions)."""
    training = job.training.training
    return training.per_device_batch_size * training.gradient_accumulation_steps * job.cluster.world_size
