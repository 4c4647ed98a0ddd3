"""How many processes a job has, and on what."""

import re

from trl_operator.api.cluster import ClusterSpec
from trl_operator.api.job import Job
from trl_operator.constants import GPU_PATTERN


def gpus_per_node(spec: ClusterSpec) -> int:
    """Return the number of GPUs in resources.limits; 0 without."""
    limits = spec.resources.limits or {}
    return sum(int(count) for name, count in limits.items() if re.match(GPU_PATTERN, name))


def processes_per_node(spec: ClusterSpec) -> int:
    """Return numProcPerNode: as given, else the number of GPUs, else 1."""
    return spec.num_proc_per_node or gpus_per_node(spec) or 1


def world_size(spec: ClusterSpec) -> int:
    """Return the number of processes of all nodes."""
    return spec.num_nodes * processes_per_node(spec)


def batch_size(job: Job) -> int:
    """Return the rows per optimizer step (grpo: completions)."""
    training = job.training.training
    return training.per_device_batch_size * training.gradient_accumulation_steps * world_size(job.cluster)
