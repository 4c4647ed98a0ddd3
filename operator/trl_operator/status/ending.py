"""How a job ends: what its status says for good."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import PurePosixPath
from typing import Literal

from trl_operator.api.job import Job
from trl_operator.api.status import ArtifactStatus, Failure, JobStatus, Phase
from trl_operator.plan.observation import Pod, format_time, parse_time
from trl_operator.plan.outcome import Cause, records
from trl_operator.policy import memory
from trl_operator.render.fetch import fetch_command
from trl_operator.status.conditions import clean, drop_condition, set_condition
from trl_operator.status.progress import duration

MAX_REPEATED = 256
"""Characters of the end's message in conditions beside Finished, which has all of it."""


def succeed(job: Job, status: JobStatus, pods: Iterable[Pod], now: datetime) -> None:
    """The job has succeeded; `pods` are those of its attempt, as far as they are known."""
    pods = tuple(pods)
    found = records(pods)
    # Every rank may name them; the list is keyed by type, and the lowest rank has the word.
    named = {artifact.type: artifact for record in reversed(found) for artifact in record.artifacts}
    artifacts = [
        _artifact(job, status, artifact.type, artifact.uri, artifact.digest, artifact.size)
        for artifact in named.values()
    ]
    reason, message = "Succeeded", f"training has finished{_gain(status)}"
    if not found:
        told = status.progress.artifacts if status.progress and status.progress.attempt == status.attempt else []
        artifacts = [
            _artifact(job, status, artifact.type, artifact.path, artifact.digest, artifact.size) for artifact in told
        ]
        reason, message = "NoExitRecord", "all pods ended with exit code 0 and left no exit record"
        if not pods:
            message = "its pods are gone, and with them the record of what they have left"
        place = f"folder {job.uid} of PersistentVolumeClaim {job.storage_claim}"
        message += ": artifacts are those of its last report" if artifacts else f": look into {place}"
    status.artifacts = artifacts
    _end(job, status, "Succeeded", reason, message, now)


def fail(job: Job, status: JobStatus, cause: Cause, now: datetime) -> None:
    """The job has failed for a cause."""
    status.failure = Failure(
        reason=cause.reason,
        message=clean(cause.message, 1024),
        hint=memory.hint(job, status, cause),
        pod=cause.pod,
        rank=cause.rank,
        exit_code=cause.exit_code,
        log=clean(cause.log, 2048) if cause.log else None,
    )
    _end(job, status, "Failed", cause.reason, cause.message, now)


def cancel(job: Job, status: JobStatus, message: str, now: datetime) -> None:
    """The job has ended as it was wished."""
    _end(job, status, "Cancelled", "Cancelled", message, now)


def tell_all(job: Job, status: JobStatus) -> None:
    """Have a job that ended under version 0.1, which knew of Succeeded only, say what others wait for."""
    said, ended = status.condition("Succeeded"), parse_time(status.completion_time)
    if status.condition("Finished") is None and said is not None and ended is not None:
        _say(job, status, status.phase, said.reason, said.message, ended)


def _end(job: Job, status: JobStatus, phase: Phase, reason: str, message: str, now: datetime) -> None:
    _say(job, status, phase, reason, message, now)
    status.phase, status.completion_time = phase, format_time(now)
    if (began := parse_time(status.start_time)) is not None:
        status.took = duration(int((now - began).total_seconds()))


def _say(job: Job, status: JobStatus, phase: Phase | None, reason: str, message: str, now: datetime) -> None:
    drop_condition(status, "Reconciling")
    drop_condition(status, "Stalled")
    said: dict[str, Literal["True", "False"]] = {
        "Running": "False",
        "Succeeded": "True" if phase == "Succeeded" else "False",
        "Failed": "True" if phase == "Failed" else "False",
        "Finished": "True",
        # What kstatus reads; without it a job that has failed would look as if all were well.
        **({"Stalled": "True"} if phase == "Failed" else {}),
    }
    for kind, value in said.items():
        whole = message if kind == "Finished" else message[:MAX_REPEATED]
        set_condition(status, kind, value, reason, whole, generation=job.generation, now=now)


def _gain(status: JobStatus) -> str:
    headline = status.evaluation.headline() if status.evaluation else ""
    return f"; on held-out rows, {headline}" if headline else ""


def _artifact(job: Job, status: JobStatus, kind: str, folder: str, digest: str, size: int | None) -> ArtifactStatus:
    """The trainer says where it is in the volume as it was mounted; the status, where it is in the claim."""
    path = str(PurePosixPath(job.cluster.storage.sub_path or ".") / folder)
    command = fetch_command(job, status.run.image, kind, path) if status.run else None
    return ArtifactStatus(
        type=kind, claim_name=job.storage_claim, path=path, digest=digest, size=size, fetch_command=command
    )
