"""What Kueue says of a workload, in its object Workload, which it makes of each workload that it manages."""

from dataclasses import dataclass
from typing import Any

from trl_operator.constants import ANNOTATION_BOOST, MANAGER_BOOST
from trl_operator.plan.observation import writer

Why = tuple[str, str]
"""Reason and message."""

UNSEEN: Why = (
    "NotYetSeen",
    "Kueue has yet to take up the attempt; if it never does, the kind of its workload is not among the"
    " integrations.frameworks of Kueue's configuration",
)
NOT_ENABLED: Why = (
    "KueueNotEnabled",
    "this operator was installed without kueue.enabled, and so cannot tell what Kueue says: if Kueue is there, the job"
    " starts when it is admitted",
)
NOT_INSTALLED: Why = ("KueueNotInstalled", "there is no Kueue in this cluster: install it, or remove queue")


@dataclass(frozen=True)
class Admission:
    """What is known of the Workload of one attempt's workload."""

    waits: Why = UNSEEN
    """Why it is not admitted; of no meaning if it is."""
    known: bool = False
    """There is a Workload: Kueue manages the attempt, whatever its job says."""
    admitted: bool = False
    """Kueue lets it go, or has let it go and has not yet taken back what it has given."""
    was_admitted: bool = False
    """It was admitted once before, and has lost that again."""
    evicted: Why | None = None
    """Why Kueue takes back what it has given."""
    active: bool = True
    """False: an administrator, or too many evictions, keeps it from being admitted."""
    place: str = ""
    """Where it is admitted: ClusterQueue and flavors."""
    name: str = ""
    """Name of the Workload."""
    uid: str = ""
    """Its uid."""
    boost: str = ""
    """What is added to its priority; empty: nothing."""
    boost_is_ours: bool = False
    """It is the operator that has written that."""


NOTHING_SAID = Admission()


def admission_from(obj: dict[str, Any]) -> Admission:
    """Return what a Workload (v1beta2) says."""
    spec, status = obj.get("spec", {}), obj.get("status", {})
    conditions = {found["type"]: found for found in status.get("conditions") or ()}
    evicted, metadata = conditions.get("Evicted", {}), obj["metadata"]
    return Admission(
        waits=_waits(obj, conditions),
        known=True,
        admitted=conditions.get("Admitted", {}).get("status") == "True",
        was_admitted="accumulatedPastExecutionTimeSeconds" in status,
        evicted=(evicted["reason"], evicted.get("message", "")) if evicted.get("status") == "True" else None,
        active=spec.get("active", True),
        place=_place(status.get("admission") or {}),
        name=metadata["name"],
        uid=metadata["uid"],
        boost=(metadata.get("annotations") or {}).get(ANNOTATION_BOOST, ""),
        boost_is_ours=writer(obj, "metadata", "annotations", ANNOTATION_BOOST) == MANAGER_BOOST,
    )


def _waits(obj: dict[str, Any], conditions: dict[str, Any]) -> Why:
    spec, status, name = obj.get("spec", {}), obj.get("status", {}), obj["metadata"]["name"]
    reserved, finished = conditions.get("QuotaReserved", {}), conditions.get("Finished", {})
    if not spec.get("active", True):
        ends = conditions.get("Evicted", {}).get("message", "it is not active")
        return "Deactivated", f"Workload {name}: {ends}; set its spec.active to true, or cancel the job"
    if finished.get("status") == "True":
        return finished["reason"], f"Workload {name} is over: {finished.get('message', '')}: cancel the job"
    if reserved.get("status") == "True":
        checks = [found for found in status.get("admissionChecks") or () if found["state"] != "Ready"]
        said = (f"{found['name']} is {found['state']}: {found.get('message', '')}".rstrip(": ") for found in checks)
        return "AdmissionChecksPending", f"quota is reserved; admission checks: {'; '.join(said)}"
    if reserved:
        queue, message = spec.get("queueName", ""), reserved.get("message", "")
        named = queue and f"LocalQueue {queue}" not in message
        return reserved["reason"], f"LocalQueue {queue}: {message}" if named else message
    # Of those that are alike, Kueue looks at the first one only.
    queue = spec.get("queueName", "")
    return "Pending", f"LocalQueue {queue}: Kueue has not said why Workload {name} waits: others like it come first"


def _place(admission: dict[str, Any]) -> str:
    if not admission:
        return ""
    flavors: dict[str, list[str]] = {}
    for assigned in admission.get("podSetAssignments") or ():
        for resource, flavor in sorted((assigned.get("flavors") or {}).items()):
            flavors.setdefault(flavor, []).append(resource)
    given = ", ".join(f"{'/'.join(resources)} of flavor {flavor}" for flavor, resources in flavors.items())
    return f"ClusterQueue {admission['clusterQueue']}" + (f": {given}" if given else "")
