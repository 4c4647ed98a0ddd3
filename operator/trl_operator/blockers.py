"""What stands against starting an attempt: objects of others, as they are watched, or live where nobody watches."""

from typing import Any

from trl_operator.api.job import Job
from trl_operator.api.stored import read_status
from trl_operator.backend import Backend
from trl_operator.constants import LABEL_JOB_UID
from trl_operator.kube import CLAIMS, CONFIG_MAPS, JOBS, NETWORK_POLICIES, Kube
from trl_operator.plan.acceptance import Blocker, check_lost, check_new_claim, check_reference, references
from trl_operator.plan.observation import controller, controller_uid
from trl_operator.plan.retained import check_retained, is_retained
from trl_operator.plan.upstream import upstreams
from trl_operator.resource import Resource
from trl_operator.store.needs import Needs
from trl_operator.store.waiting import Thing

Obj = dict[str, Any]


TAKEN = frozenset({"NameConflict", "WaitingForDeletion"})
"""Reasons of Accepted=False while somebody else has the name of something that an attempt needs."""


def things(job: Job) -> list[Thing]:
    """Return what the job may have to wait for before it starts."""
    found: list[Thing] = [(reference.kind, job.namespace, reference.name) for reference in references(job)]
    found += [(upstream.kind, job.namespace, upstream.name) for upstream in upstreams(job)]
    return [*found, ("PersistentVolumeClaim", job.namespace, job.storage_claim)]


async def find_blocker(
    kube: Kube, needs: Needs, job: Job, attempt: int, status: Obj, backend: Backend
) -> Blocker | None:
    """Return the first thing that stands against starting `attempt` now; None if nothing does.

    `status` is the job's; the results of earlier jobs are in place of their names. Names of our own objects are not
    asked for before one has turned out to be taken.
    """
    if blocker := check_new_claim(job):
        return blocker
    for reference in references(job):
        watched = reference.kind == "PersistentVolumeClaim"
        found = needs.claim(job.namespace, reference.name) if watched else None
        # A claim that was made with its job may not be known yet.
        found = found or await kube.get(CLAIMS if watched else CONFIG_MAPS, job.namespace, reference.name)
        if blocker := check_reference(reference, found, job.cluster.num_nodes):
            return blocker
    if blocker := await _own_claim(kube, needs, job, status):
        return blocker
    if read_status(status).reason("Accepted") in TAKEN:
        for resource, name in (
            *((resource, job.child_name(attempt)) for resource in (backend.RESOURCE, *backend.BESIDE)),
            (CONFIG_MAPS, job.base_name),
            (CONFIG_MAPS, job.child_name(attempt)),
            (NETWORK_POLICIES, job.child_name(attempt)),
        ):
            found = await kube.get(resource, job.namespace, name)
            if found is not None and (blocker := await name_blocker(kube, job, resource, found)):
                return blocker
    return None


async def _own_claim(kube: Kube, needs: Needs, job: Job, status: Obj) -> Blocker | None:
    """The claim that the job writes to. It is never silently made anew when there were checkpoints in it."""
    if job.cluster.storage.claim_name:
        return None
    found, checkpoints = needs.claim(job.namespace, job.storage_claim), status.get("checkpoints", ())
    if found is None and checkpoints:
        found = await kube.get(CLAIMS, job.namespace, job.storage_claim)
    return await claim_blocker(kube, job, found, max((saved["step"] for saved in checkpoints), default=None))


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


async def claim_blocker(kube: Kube, job: Job, found: Obj | None, step: int | None = None) -> Blocker | None:
    """Return what stands against using `found` as the claim that the job writes to; `step` is that of the newest
    checkpoint in it. A claim that an earlier job of the same name has left is used again if storage.reuse allows it."""
    if found is None:
        return check_lost(job.storage_claim, step)
    metadata = found["metadata"]
    mine = job.uid in (controller_uid(metadata), metadata.get("labels", {}).get(LABEL_JOB_UID))
    if "deletionTimestamp" in metadata:
        return check_lost(job.storage_claim, step, deleting=True) if mine else _leaves(CLAIMS, found)
    if mine:
        return None
    if is_retained(found, job):
        return check_retained(found, job)
    return _leaves(CLAIMS, found) if await is_orphan(kube, job, found) else _taken(CLAIMS, found)


def _leaves(resource: Resource, found: Obj) -> Blocker:
    what = f"{resource.plural} {found['metadata']['name']}"
    return Blocker("WaitingForDeletion", f"{what} of an earlier job is being deleted", polled=resource != CLAIMS)


def _taken(resource: Resource, found: Obj) -> Blocker:
    what = f"{resource.plural} {found['metadata']['name']}"
    message = f"{what} exists and is not this job's: delete it, or rename the job"
    return Blocker("NameConflict", message, polled=resource != CLAIMS)
