"""What stands against starting an attempt: looked up live, since the objects belong to others."""

from typing import Any

from trl_operator.api.job import Job
from trl_operator.backend import backend_for
from trl_operator.constants import LABEL_JOB_UID
from trl_operator.kube import CLAIMS, CONFIG_MAPS, JOBS, NETWORK_POLICIES, Kube
from trl_operator.plan.acceptance import Blocker, check_reference, check_retained, check_spec, references
from trl_operator.plan.observation import controller_uid
from trl_operator.plan.upstream import awaits, check_upstream, upstreams, with_upstreams
from trl_operator.resource import Resource

Obj = dict[str, Any]


async def find_blocker(kube: Kube, job: Job, attempt: int) -> Blocker | None:
    """Return the first thing that stands against starting `attempt` now; None if nothing does."""
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
    for resource, name in (
        (backend_for(job).RESOURCE, job.child_name(attempt)),
        (CONFIG_MAPS, job.child_name(attempt)),
        (NETWORK_POLICIES, job.base_name),
    ):
        if blocker := await _name_taken(kube, job, resource, name):
            return blocker
    return await _claim_taken(kube, job)


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


async def _name_taken(kube: Kube, job: Job, resource: Resource, name: str) -> Blocker | None:
    found = await kube.get(resource, job.namespace, name)
    if found is None or controller_uid(found["metadata"]) == job.uid:
        return None
    return await _conflict(kube, job, resource.plural, found)


async def _claim_taken(kube: Kube, job: Job) -> Blocker | None:
    """A claim of ours by label is used again; it may be left over from an earlier job of the same name."""
    if job.cluster.storage.claim_name:
        return None
    found = await kube.get(CLAIMS, job.namespace, job.storage_claim)
    if found is None or controller_uid(found["metadata"]) == job.uid:
        return None
    metadata = found["metadata"]
    ours = LABEL_JOB_UID in metadata.get("labels", {}) and not metadata.get("ownerReferences")
    if ours and "deletionTimestamp" not in metadata:
        return check_retained(found, job.cluster.num_nodes)
    return await _conflict(kube, job, CLAIMS.plural, found)


async def _conflict(kube: Kube, job: Job, plural: str, found: Obj) -> Blocker:
    name = found["metadata"]["name"]
    if "deletionTimestamp" in found["metadata"] or await _owner_is_gone(kube, job, found):
        return Blocker("WaitingForDeletion", f"{plural} {name} of an earlier job is being deleted")
    return Blocker("NameConflict", f"{plural} {name} exists and is not this job's: delete it, or rename the job")


async def _owner_is_gone(kube: Kube, job: Job, found: Obj) -> bool:
    """Whether the owner was an earlier job of this name: the garbage collector is about to delete its child."""
    owner = controller_uid(found["metadata"])
    names = [ref["name"] for ref in found["metadata"].get("ownerReferences", ()) if ref["kind"] == job.info.kind]
    if not owner or not names:
        return False
    live = await kube.get(JOBS[job.info.kind], job.namespace, names[0])
    return live is None or live["metadata"]["uid"] != owner
