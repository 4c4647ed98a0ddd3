"""How a job ends: what its status says for good."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import PurePosixPath
from typing import Literal

from trl_operator.api.job import Job
from trl_operator.api.status import ArtifactStatus, Failure, JobStatus, Phase
from trl_operator.plan.observation import Pod, format_time
from trl_operator.plan.outcome import Cause, records
from trl_operator.policy import memory
from trl_operator.status.conditions import clean, set_condition


def succeed(job: Job, status: JobStatus, pods: Iterable[Pod], now: datetime) -> None:
    """The job has succeeded; `pods` are those of its attempt, as far as they are known."""
    pods = tuple(pods)
    found = records(pods)
    # Every rank may name them; the list is keyed by type, and the lowest rank has the word.
    named = {artifact.type: artifact for record in reversed(found) for artifact in record.artifacts}
    artifacts = [_artifact(job, artifact.type, artifact.uri, artifact.digest) for artifact in named.values()]
    reason, message = "Succeeded", "training has finished"
    if not found:
        told = status.progress.artifacts if status.progress and status.progress.attempt == status.attempt else []
        artifacts = [_artifact(job, artifact.type, artifact.path, artifact.digest) for artifact in told]
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


def _end(job: Job, status: JobStatus, phase: Phase, reason: str, message: str, now: datetime) -> None:
    set_condition(status, "Running", "False", reason, message, generation=job.generation, now=now)
    done: Literal["True", "False"] = "True" if phase == "Succeeded" else "False"
    set_condition(status, "Succeeded", done, reason, message, generation=job.generation, now=now)
    status.conditions = [found for found in status.conditions if found.type != "Stalled"]
    status.phase, status.completion_time = phase, format_time(now)


def _artifact(job: Job, kind: str, folder: str, digest: str) -> ArtifactStatus:
    """The trainer says where it is in the volume as it was mounted; the status, where it is in the claim."""
    path = PurePosixPath(job.cluster.storage.sub_path or ".") / folder
    return ArtifactStatus(type=kind, claim_name=job.storage_claim, path=str(path), digest=digest)
