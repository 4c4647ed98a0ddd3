"""A claim that an earlier job of the same name has left: whether the new one writes to it."""

from collections.abc import Iterable
from typing import Any

from trl_contract.quantity import amount
from trl_operator.api.job import Job
from trl_operator.constants import LABEL_JOB_UID
from trl_operator.plan.acceptance import Blocker, not_shared

Obj = dict[str, Any]


def is_retained(claim: Obj, job: Job) -> bool:
    """Return whether a claim of the name that the job's would have is one that an earlier job has left."""
    labels = claim["metadata"].get("labels", {})
    ours = LABEL_JOB_UID in labels and not claim["metadata"].get("ownerReferences")
    return ours and labels[LABEL_JOB_UID] != job.uid


def check_retained(claim: Obj, job: Job) -> Blocker | None:
    """Return why the job may not write to a claim that an earlier one has left; None if it may (storage.reuse)."""
    storage, left = job.cluster.storage, f"PersistentVolumeClaim {claim['metadata']['name']} of an earlier job"
    remedy = "delete the claim, or rename the job"
    if storage.reuse == "never":
        message = f"storage.reuse is never, but {left} is there, with {_described(claim)}: {remedy}"
        return Blocker("RetainedClaimExists", f"{message}, or create it anew with storage.reuse ifFits")
    if alone := not_shared(claim, job.cluster.num_nodes, {"ReadWriteMany"}):
        needs = f"but numNodes is {job.cluster.num_nodes}: several nodes need ReadWriteMany"
        return Blocker("AccessModeNotShared", f"storage: {left} has access modes {alone}, {needs}: {remedy}")
    if storage.reuse == "always":
        return None
    # Of what the job says itself: jobDefaults are for claims that are made.
    own = (job.own or job.cluster).storage
    size, named, modes = own.size, own.storage_class_name, own.access_modes or ()
    there = _modes(claim)
    for field, wanted, found, fits in (
        ("size", size, _size(claim), size is None or amount(_size(claim)) >= amount(size)),
        ("storageClassName", named, _class(claim), named in (None, _class(claim))),
        ("accessModes", ", ".join(modes), ", ".join(there), _cover(there, modes)),
        ("retain", "false", "true", own.retain is not False),
    ):
        if not fits:
            message = f"storage.{field} is {wanted}, but {left} has {found}: {remedy}"
            return Blocker("RetainedClaimDiffers", f"{message}, or create it anew with storage.reuse always")
    return None


def reused(claim: Obj | None, job: Job) -> str:
    """Return what is to be said of the claim that the job writes to, if an earlier one has left it; else nothing."""
    if claim is None or job.cluster.storage.claim_name or not is_retained(claim, job):
        return ""
    name, asked = claim["metadata"]["name"], job.cluster.storage.size
    claimed = f"PersistentVolumeClaim {name} that an earlier job has left"
    return f"; it writes to {claimed}, with {_described(claim)} (storage.size is {asked})"


def _described(claim: Obj) -> str:
    return f"size {_size(claim)}, class {_class(claim)}, access modes {', '.join(_modes(claim)) or 'none'}"


def _size(claim: Obj) -> str:
    return str(claim["spec"].get("resources", {}).get("requests", {}).get("storage", "0"))


def _class(claim: Obj) -> str:
    return str(claim["spec"].get("storageClassName") or "none")


def _modes(claim: Obj) -> list[str]:
    return sorted(claim["spec"].get("accessModes", ()))


def _cover(modes: list[str], wanted: Iterable[str]) -> bool:
    """Whether a claim with these access modes can be used as is wanted: by one node too, if by many."""
    return set(wanted) <= {*modes, *(["ReadWriteOnce"] if "ReadWriteMany" in modes else [])}
