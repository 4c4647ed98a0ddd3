"""Turns a resource into a job file for this machine: claims and ConfigMaps become folders, pods become processes."""

import hashlib
import json
import os
from pathlib import Path

from trl_contract.jobfile import JobFile, Paths
from trl_contract.rewards import token_variable
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


def here(resource: Resource, places: Places, gpus: int) -> JobFile:
    """Return the job file with which `resource` trains on this machine, on all `gpus` or on the CPU.

    Inline rows and ConfigMaps of the same file are written below the job's folder. UserError if a place is missing or
    the machine cannot do what the job asks for.
    """
    check(resource, places, gpus)
    return _placed(_job(resource, gpus), resource, places, sources.storage_folder(resource, places))


def check(resource: Resource, places: Places, gpus: int) -> None:
    """UserError where `here` would raise one."""
    if found := _obstacles(_job(resource, gpus)):
        raise UserError("InvalidSpec", "\n".join(found))
    sources.find(resource, places)


def imagined(resource: Resource, places: Places, gpus: int, scratch: Path) -> tuple[JobFile, list[str]]:
    """Return what `here` does, but below `scratch`, and why this machine cannot run it.

    Where it cannot, the job is the nearest that could: with lora for qlora, and with the cluster's processes.
    """
    job = _job(resource, gpus)
    found = _obstacles(job)
    if job.spec.peft.method == "qlora" and not gpus:
        peft = job.spec.peft.model_copy(update={"method": "lora"})
        job = job.model_copy(update={"spec": job.spec.model_copy(update={"peft": peft})})
    if _obstacles(job):
        job = job.model_copy(update={"num_proc_per_node": resource.cluster.world_size})
    return _placed(job, resource, places, scratch), found


def _obstacles(job: JobFile) -> list[str]:
    """Return why this machine cannot run a job that the cluster can, a line for each reason."""
    found = []
    if job.spec.peft.method == "qlora" and not job.has_gpus:
        found.append("spec.peft.method: qlora needs a GPU, and this machine has none; use lora")
    try:
        # What CEL says of the cluster's processes, for those of this machine.
        job.spec.check_world(job.world_size)
    except ValueError as error:
        found.append(f"spec.{error}")
    return found


def _placed(job: JobFile, resource: Resource, places: Places, storage: Path) -> JobFile:
    """Return `job` with its own name, number and paths below `storage`."""
    found, storage = sources.find(resource, places), storage.resolve()
    uid = f"{resource.name}-{_digest(job, resource, found)}"
    work = storage / uid
    return job.model_copy(
        update={"uid": uid, "attempt": _next_attempt(work), "paths": found.write(storage, work)},
    )


def as_written(job: JobFile, resource: Resource) -> JobFile:
    """Return `job` (of `here` or `imagined`) with what the resource asks the cluster for."""
    cluster = resource.cluster
    return job.model_copy(
        update={
            "spec": resource.training,
            "num_nodes": cluster.num_nodes,
            "num_proc_per_node": cluster.processes_per_node,
            "has_gpus": cluster.gpus_per_node > 0,
        }
    )


def _job(resource: Resource, gpus: int) -> JobFile:
    policy = resource.cluster.run_policy
    return JobFile(
        kind=resource.kind,
        namespace=resource.namespace,
        name=resource.name,
        uid=resource.name,
        num_proc_per_node=gpus or resource.cluster.num_proc_per_node or 1,
        has_gpus=gpus > 0,
        stall_timeout_seconds=policy.stall_timeout_seconds,
        termination_grace_period_seconds=policy.termination_grace_period_seconds,
        paths=Paths(storage="."),
        origins=resource.origins or None,
        spec=resource.training,
    )


def _digest(job: JobFile, resource: Resource, found: Sources) -> str:
    """What the result depends on, in 8 digits: a changed file, of the job or one that it names, is another job with a
    folder of its own; the same ones continue where they were. A repository of the hub is taken to stay what it was."""
    given = [job.kind, job.num_proc_per_node, job.has_gpus, job.spec.to_wire()]
    env = resource.cluster.env or []
    variables = [variable.to_wire() for variable in env]
    # Exported here. Tokens of the hub and of W&B decide who may read and write, not what is learnt.
    names = [variable.name for variable in env if variable.value is None]
    names += [token_variable(reward.name) for reward in job.spec.rewards if reward.http and reward.http.secret_ref]
    variables += [{name: hashlib.sha256(os.environ.get(name, "").encode()).hexdigest()} for name in names]
    parts = [*given, variables, found.digests(), sources.code()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def _next_attempt(work: Path) -> int:
    taken = [int(name) for name in os.listdir(work / "attempt")] if (work / "attempt").is_dir() else []
    return max(taken, default=-1) + 1
