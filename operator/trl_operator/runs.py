"""The run of a job: pinned when its first attempt begins, and found again for all others."""

from dataclasses import replace
from typing import Any

from trl_contract.cluster import BackendName
from trl_contract.jobfile import AttemptFile
from trl_contract.upstreams import Upstream
from trl_operator.api.defaults import RESOLVED, pinned, with_defaults
from trl_operator.api.job import Job
from trl_operator.api.status import JobStatus
from trl_operator.api.stored import read_status
from trl_operator.kube import CONFIG_MAPS, JOBS, Kube
from trl_operator.plan.acceptance import Blocker
from trl_operator.plan.observation import controller_uid
from trl_operator.plan.upstream import Result, as_pinned, look, upstreams
from trl_operator.policy.memory import attempt_file
from trl_operator.render.run import Pinned, digest, pin

Obj = dict[str, Any]


async def find_run(kube: Kube, job: Job, status: Obj, trainer_image: str, backend: BackendName) -> Pinned | Blocker:
    """Return what the job's attempts have in common, or what stands against it; `trainer_image` is for a first attempt,
    and `backend` is what a run that has one is pinned to.

    A job whose earlier attempts an operator of version 0.1 has started is pinned at the next one. A run that is pinned
    is made anew only as it was, and as long as no attempt has begun.
    """
    known = read_status(status)
    if known.run is None:
        return await _pin(kube, job, known, trainer_image, backend)
    found = await kube.get(CONFIG_MAPS, job.namespace, job.base_name)
    if found is not None and controller_uid(found["metadata"]) == job.uid and digest(found["data"]) == known.run.digest:
        job = pinned(job, found["data"].get(RESOLVED))
        return Pinned(as_pinned(job, found["data"]["job.json"]), known.run)
    again = await _pin(kube, job, known, known.run.image if known.attempt else trainer_image, backend)
    if isinstance(again, Blocker) or again.run == known.run or not known.attempt:
        return again
    message = (
        f"ConfigMap {job.base_name}, which held what all attempts have in common, is gone, and can no longer be made as"
        " it was: restore it, or create a new job"
    )
    return Blocker("RunNotFound", message, polled=True)


async def find_again(kube: Kube, job: Job, stored: Obj) -> tuple[Pinned, AttemptFile] | None:
    """Return the run and the file of the attempt that is under way; None if they cannot be made as they were."""
    status = read_status(stored)
    if status.run is None:
        # An operator of version 0.1 has started it.
        return None
    found = await find_run(kube, job, stored, status.run.image, status.run.backend)
    if not isinstance(found, Pinned) or found.run != status.run:
        return None
    return found, attempt_file(status)


async def _pin(kube: Kube, job: Job, known: JobStatus, trainer_image: str, backend: BackendName) -> Pinned | Blocker:
    results: dict[Upstream, Result] = {}
    for upstream in upstreams(job):
        found = look(upstream, await kube.get(JOBS[upstream.kind], job.namespace, upstream.name))
        if isinstance(found, Blocker):
            return found
        results[upstream] = found
    # What has begun without defaults gets none in mid-life, and is made anew as it was.
    begun = bool(known.attempt) or known.workload is not None
    if begun and known.defaults is None:
        job = replace(job, offered={})
    return pin(with_defaults(job, job.offered), results, trainer_image, backend)
