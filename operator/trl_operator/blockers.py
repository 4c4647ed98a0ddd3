"""What stands against starting an attempt: looked up live, since the objects belong to others."""

from typing import Any

from trl_operator.api.job import Job
from trl_operator.api.stored import read_status
from trl_operator.backend import backend_for
from trl_operator.constants import LABEL_JOB_UID
from trl_operator.kube import CLAIMS, CONFIG_MAPS, JOBS, NETWORK_POLICIES, Kube
from trl_operator.plan.acceptance import Blocker, check_lost, check_reference, check_retained, check_spec, references
from trl_operator.plan.observation import controller, controller_uid
from trl_operator.plan.upstream import awaits, check_upstream, upstreams, with_upstreams
from trl_operator.resource import Resource

Obj = dict[str, Any]


TAKEN = frozenset({"NameConflict", "WaitingForDeletion"})
"""Reasons of Accepted=False while somebody else has the name of something that an attempt needs."""


async def find_blocker(kube: Kube, job: Job, attempt: int, status: Obj) -> Blocker | None:
    """Return the first thing that stands against starting `attempt` now; None if nothing does.

    `status` is the job's. Names are not asked for before one has turned out to be taken.
    """
    if blocker := check_spec(job):
        return blocker
    resolved = await resolve(kube, job)
    if isinstance(resolved, Blocker):
        return resolved
    job = resolved
    for reference in references(job):
        resource = CONFIG_MAPS if reference.kind == "ConfigMap" else CLAIMS
        found = await kube.get(resource, job.namespace, reference.name)
        if blocker := check_reference(reference, found, job.cluster.num_nodes):
            return blocker
    if blocker := await _claim_blocker(kube, job, status):
        return blocker
    if read_status(status).reason("Accepted") in TAKEN:
        for resource in (backend_for(job).RESOURCE, CONFIG_MAPS, NETWORK_POLICIES):
            found = await kube.get(resource, job.namespace, job.child_name(attempt))
            if found is not None and (blocker := await name_blocker(kube, job, resource, found)):
                return blocker
    return None


async def resolve(kube: Kube, job: Job) -> Job | Blocker:
    """Return the job with the results of earlier jobs in place of their names, or why they cannot be used."""
    found: dict[str, Obj] = {}
    for upstream in upstreams(job):
        obj = await kube.get(JOBS[upstream.kind], job.namespace, upstream.name)
        if blocker := check_upstream(upstream, obj):
            return blocker
        assert obj is not None, "check_upstream has seen it"
        found[upstream.name] = obj
    return with_upstreams(job, found)


async def is_awaited(kube: Kube, job: Job) -> bool:
    """Return whether another job that has not ended uses the result of this one."""
    if job.info.kind != "RewardJob":
        return False
    others, _ = await kube.list(JOBS["GRPOJob"], job.namespace)
    return any(awaits(obj, job.name) for obj in others)


async def name_blocker(kube: Kube, job: Job, resource: Resource, found: Obj) -> Blocker | None:
    """Return why an object keeps the job from using its name; None if it is the job's, or nobody's any more."""
    if "deletionTimestamp" in found["metadata"]:
        return _leaves(resource, found)
    if controller_uid(found["metadata"]) == job.uid or await is_orphan(kube, job, found):
        return None
    return _taken(resource, found)


async def is_orphan(kube: Kube, job: Job, found: Obj) -> bool:
    """Return whether an object belonged to an earlier job of this name, which is gone."""
    owner = controller(found["metadata"])
    if owner.get("kind") != job.info.kind or owner["uid"] == job.uid:
        return False
    live = await kube.get(JOBS[job.info.kind], job.namespace, owner["name"])
    return live is None or live["metadata"]["uid"] != owner["uid"]


async def _claim_blocker(kube: Kube, job: Job, status: Obj) -> Blocker | None:
    """A claim of ours by label is used again; it may be left over from an earlier job of the same name.

    The job's own claim, with its checkpoints, is another matter: it is never silently made anew.
    """
    if job.cluster.storage.claim_name:
        return None
    found = await kube.get(CLAIMS, job.namespace, job.storage_claim)
    lost = max((checkpoint["step"] for checkpoint in status.get("checkpoints", ())), default=None)
    if found is None:
        return check_lost(job.storage_claim, lost)
    metadata = found["metadata"]
    mine = job.uid in (controller_uid(metadata), metadata.get("labels", {}).get(LABEL_JOB_UID))
    if "deletionTimestamp" in metadata:
        return check_lost(job.storage_claim, lost, deleting=True) if mine else _leaves(CLAIMS, found)
    if mine:
        return None
    if LABEL_JOB_UID in metadata.get("labels", {}) and not metadata.get("ownerReferences"):
        return check_retained(found, job)
    return _leaves(CLAIMS, found) if await is_orphan(kube, job, found) else _taken(CLAIMS, found)


def _leaves(resource: Resource, found: Obj) -> Blocker:
    what = f"{resource.plural} {found['metadata']['name']}"
    return Blocker("WaitingForDeletion", f"{what} of an earlier job is being deleted")


def _taken(resource: Resource, found: Obj) -> Blocker:
    what = f"{resource.plural} {found['metadata']['name']}"
    return Blocker("NameConflict", f"{what} exists and is not this job's: delete it, or rename the job")
