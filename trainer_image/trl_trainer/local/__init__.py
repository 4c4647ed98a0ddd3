"""Turns a resource into a job file for this machine: claims and ConfigMaps become folders, pods become processes."""

import hashlib
import json
import os
from pathlib import Path

from trl_contract.jobfile import JobFile, Paths
from trl_trainer.errors import UserError
from trl_trainer.local import sources
from trl_trainer.local.resource import Resource
from trl_trainer.local.sources import Places as Places
from trl_trainer.local.sources import Sources

GPU_DEVICES = ("nvidia[0-9]*", "kfd", "dxg")
"""Device files without which no GPU can be used."""


def num_gpus(devices: Path = Path("/dev")) -> int:
    """Return the number of GPUs that PyTorch can use here."""
    if not any(any(devices.glob(pattern)) for pattern in GPU_DEVICES):
        # Importing torch to learn this takes seconds.
        return 0
    import torch

    return int(torch.cuda.device_count())


def here(resource: Resource, places: Places, gpus: int, scratch: Path | None = None) -> JobFile:
    """Return the job file with which `resource` trains on this machine, on all `gpus` or on the CPU.

    Inline rows and ConfigMaps of the same file are written below the job's folder, which is in `scratch` if that is
    given. UserError if a place is missing or the machine cannot do what the job asks for.
    """
    job = _job(resource, per_node=gpus or resource.cluster.num_proc_per_node or 1, has_gpus=gpus > 0)
    if resource.training.peft.method == "qlora" and not gpus:
        raise UserError("InvalidSpec", "spec.peft.method: qlora needs a GPU, and this machine has none; use lora")
    _check_groups(job)
    found = sources.find(resource, places)
    storage = (scratch or sources.storage_folder(resource, places)).resolve()
    uid = f"{resource.name}-{_digest(job, resource, found)}"
    work = storage / uid
    return job.model_copy(
        update={"uid": uid, "attempt": _next_attempt(work), "paths": found.write(storage, work)},
    )


def as_written(job: JobFile, resource: Resource) -> JobFile:
    """Return `job` (of `here`) with the nodes, processes and GPUs that the resource asks the cluster for."""
    cluster = resource.cluster
    return job.model_copy(
        update={
            "num_nodes": cluster.num_nodes,
            "num_proc_per_node": cluster.processes_per_node,
            "has_gpus": cluster.gpus_per_node > 0,
        }
    )


def _job(resource: Resource, *, per_node: int, has_gpus: bool) -> JobFile:
    policy = resource.cluster.run_policy
    return JobFile(
        kind=resource.kind,
        namespace=resource.namespace,
        name=resource.name,
        uid=resource.name,
        num_proc_per_node=per_node,
        has_gpus=has_gpus,
        stall_timeout_seconds=policy.stall_timeout_seconds,
        termination_grace_period_seconds=policy.termination_grace_period_seconds,
        paths=Paths(storage="."),
        spec=resource.training,
    )


def _check_groups(job: JobFile) -> None:
    """What CEL says of the cluster's processes, for those of this machine."""
    try:
        job.spec.check_world(job.world_size)
    except ValueError as error:
        raise UserError("InvalidSpec", f"spec.{error}") from None


def _digest(job: JobFile, resource: Resource, found: Sources) -> str:
    """What the result depends on, in 8 digits: a changed file, of the job or one that it names, is another job with a
    folder of its own; the same ones continue where they were. A repository of the hub is taken to stay what it was."""
    given = [job.kind, job.num_proc_per_node, job.has_gpus, job.spec.to_wire()]
    variables = [variable.to_wire() for variable in resource.cluster.env or []]
    parts = [*given, variables, found.digests(), sources.code()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def _next_attempt(work: Path) -> int:
    taken = [int(name) for name in os.listdir(work / "attempt")] if (work / "attempt").is_dir() else []
    return max(taken, default=-1) + 1
