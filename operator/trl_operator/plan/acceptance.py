"""What a job needs of other objects, and what is wrong when they are not as it needs them."""

from dataclasses import dataclass
from typing import Any, Literal

from trl_contract import acceptance
from trl_contract.cluster import SHARED_STORAGE, Storage
from trl_contract.pod import CABundle, ConfigMapEnv, EnvFrom
from trl_contract.podvolumes import ClaimSource, ConfigMapSource, PodVolume
from trl_contract.sources import ConfigMapKey, Volume
from trl_operator.api.defaults import origin
from trl_operator.api.job import Job
from trl_operator.constants import LABEL_QUEUE
from trl_operator.plan.bindings import bindings

SHARED = {"ReadWriteMany", "ReadOnlyMany"}
FIRST_LOOK_SECONDS = 2.0
LAST_LOOK_SECONDS = 30.0


@dataclass(frozen=True)
class Blocker:
    """Why no attempt may start: a condition that is False. Whoever looks after the job hears when it may have healed,
    unless it has to be `polled`."""

    reason: str
    message: str
    polled: bool = False
    condition: Literal["Accepted", "UpstreamReady"] = "Accepted"
    fails: bool = False
    """The job ends for this reason: what it waits for will never come."""


def seconds_to_next_look(waited: float) -> float:
    """Return when a job that has waited so long for a name looks again: after a tenth of that, within bounds,
    so soon at first, and seldom if nobody mends it."""
    return min(max(waited / 10, FIRST_LOOK_SECONDS), LAST_LOOK_SECONDS)


@dataclass(frozen=True)
class Reference:
    """An object that the spec names: `field` is where."""

    field: str
    kind: Literal["ConfigMap", "PersistentVolumeClaim"]
    name: str
    key: str = ""
    writes: bool = False


def references(job: Job) -> list[Reference]:
    """Return the ConfigMaps and claims that the spec names, those of earlier jobs by the field that names these."""
    found, left = [], {upstream.field_of_volume: f"{upstream.field} ({upstream.job})" for upstream in job.builds_on}
    for binding in bindings(job):
        match binding.source:
            case Volume(claim_name=name):
                field = left.get(binding.field, binding.field)
                found.append(Reference(field, "PersistentVolumeClaim", name))
            case Storage(claim_name=str(name)):
                found.append(Reference(binding.field, "PersistentVolumeClaim", name, writes=True))
            case ConfigMapKey(name=name, key=key) | CABundle(name=name, key=key):
                found.append(Reference(binding.field + origin(job, binding.field), "ConfigMap", name, key))
            case EnvFrom(config_map_ref=ConfigMapEnv(name=name)) | PodVolume(config_map=ConfigMapSource(name=name)):
                found.append(Reference(binding.field, "ConfigMap", name))
            case PodVolume(persistent_volume_claim=ClaimSource(claim_name=name), read_only=read_only):
                found.append(Reference(binding.field, "PersistentVolumeClaim", name, writes=not read_only))
    return found


def check_spec(job: Job) -> Blocker | None:
    """Return what is wrong with the job itself and cannot be said in its schema."""
    if job.queue_label not in ("", job.queue_name):
        names = f"queue.name is {job.queue_name}, but the job's label {LABEL_QUEUE} is {job.queue_label}"
        return Blocker("QueueNamesDiffer", f"{names}: change or remove one of them")
    found = acceptance.refused(job.training)
    return Blocker(*found) if found else None


def check_new_claim(job: Job) -> Blocker | None:
    """Return what is wrong with the claim that the operator is to make, by the spec with its jobDefaults."""
    if job.cluster.has_shared_storage:
        return None
    modes = origin(job, "storage.accessModes")
    return Blocker("InvalidSpec", f"spec.storage: {SHARED_STORAGE}{modes}")


def check_reference(reference: Reference, obj: dict[str, Any] | None, num_nodes: int) -> Blocker | None:
    """Return what is wrong with an object that the spec names; `obj` is None if there is none."""
    where = f"{reference.field} names {reference.kind} {reference.name}"
    if obj is None:
        return Blocker(f"{reference.kind}NotFound", f"{where}, which does not exist: create it")
    if reference.key and reference.key not in {**obj.get("data", {}), **obj.get("binaryData", {})}:
        return Blocker("ConfigMapKeyNotFound", f"{where}, which has no key {reference.key}: add it")
    if reference.kind == "PersistentVolumeClaim":
        if "deletionTimestamp" in obj["metadata"]:
            return Blocker("PersistentVolumeClaimNotFound", f"{where}, which is being deleted: create another one")
        if modes := not_shared(obj, num_nodes, {"ReadWriteMany"} if reference.writes else SHARED):
            has = f"{where} with access modes {modes}, but numNodes is {num_nodes}"
            return Blocker("AccessModeNotShared", f"{has}: several nodes need ReadWriteMany")
    return None


def check_lost(name: str, step: int | None, *, deleting: bool = False) -> Blocker | None:
    """Return what is to be said of a job whose own claim is gone, or is being deleted; `step` is that of the newest
    checkpoint in it. Without one nothing is lost, and the claim is made anew."""
    what = f"PersistentVolumeClaim {name}"
    if step is None:
        message = f"{what} is being deleted while this job uses it; it is made anew when it is gone"
        return Blocker("WaitingForDeletion", message) if deleting else None
    happens = "is being deleted while this job uses it" if deleting else "was deleted"
    remedy = "restore it from a copy under its name, or create a new job"
    return Blocker("StorageLost", f"{what} {happens}, and with it the checkpoints up to step {step}: {remedy}")


def not_shared(claim: dict[str, Any], num_nodes: int, wanted: set[str]) -> str:
    """Return the claim's access modes if several nodes need others; empty if all is well."""
    modes = set(claim["spec"].get("accessModes", ()))
    return ", ".join(sorted(modes)) or "none" if num_nodes > 1 and not modes & wanted else ""
