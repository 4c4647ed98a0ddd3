"""What jobs and their pods wait for, as far as it is watched: claims, Kueue, events that say why pods do not run."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trl_operator.backend import concerned, denials
from trl_operator.constants import LABEL_JOB_UID
from trl_operator.kube import CLAIMS, EVENTS
from trl_operator.plan.observation import Child, Key, Pod, controller
from trl_operator.plan.starting import CLAIM_WARNINGS, POD_WARNINGS
from trl_operator.plan.view import Told, Unbound
from trl_operator.store.admissions import Admissions
from trl_operator.store.newest import Newest
from trl_operator.store.objects import version_of
from trl_operator.store.store import Store
from trl_operator.store.watched import Watched

Obj = dict[str, Any]
Place = tuple[str, str]
"""Namespace and name."""

CLAIM = "PersistentVolumeClaim"
_TELLING = {"Pod": POD_WARNINGS, CLAIM: CLAIM_WARNINGS}
"""Reasons of the events that are kept, by the kind that they are about; of workloads and what they make all."""
_NOISE = ("FailedScheduling", "BackOff", "Unhealthy")
"""Reasons of the warnings that a busy cluster is full of; what they say is in the pods' status."""


@dataclass(frozen=True, slots=True)
class WarningEvent:
    """An event about a workload or what it has made, a pod or a claim."""

    about: str | Place
    """Its uid; of what a workload has made the workload's place, if its uid is not told."""
    namespace: str
    version: int
    event: Obj
    """Its reason, message and time."""


@dataclass(frozen=True, slots=True)
class KnownClaim:
    """A claim."""

    about: Place
    namespace: str
    version: int
    claim: Obj


class Needs:
    """Claims by their place, warnings by what they are about; the store wakes whoever waits for one."""

    def __init__(self, store: Store, kueue: bool = False, boosts: bool = False) -> None:
        """`kueue`: what Kueue says may be read, and is; `boosts`: attempts without a checkpoint are preferred there."""
        self._store = store
        self.admissions = Admissions(store, kueue, boosts)
        self._claims: Newest[KnownClaim] = Newest(gone=self._tell_of_claim)
        self._warnings: Newest[WarningEvent] = Newest()

    def watched(self) -> list[Watched]:
        """Return what has to be watched to keep this."""
        fields = ",".join(["type=Warning", *(f"reason!={reason}" for reason in _NOISE)])
        return [
            Watched(CLAIMS, self.put_claim, self._claims.drop, self._claims.sweep),
            Watched(EVENTS, self.put_event, self._warnings.drop, self._warnings.sweep, fields=fields),
            *self.admissions.watched(),
        ]

    # -- claims

    def claim(self, namespace: str, name: str) -> Obj | None:
        """Return what is known of a claim, in the form of its object; None if none is known."""
        known = self._claims.newest((namespace, name))
        return known.claim if known else None

    def put_claim(self, obj: Obj) -> None:
        """Take over the state of a claim, unless a newer one is known."""
        found = KnownClaim(_place(obj), obj["metadata"]["namespace"], version_of(obj), _claim(obj))
        if self._claims.put(obj["metadata"]["uid"], found):
            self._tell_of_claim(found)

    def _tell_of_claim(self, known: KnownClaim) -> None:
        self._store.waiting.wake((CLAIM, *known.about))

    # -- events

    def told(self, key: Key, child: Child | None, pods: Iterable[Pod], num_nodes: int) -> Told:
        """Return what is told of an attempt of `num_nodes` pods, and have its job woken when something happens to the
        claims of those that have no node yet."""
        pods = list(pods)
        denied = denials(child, self.about(child)) if child and len(pods) < num_nodes else ()
        claims = {name for pod in pods if not pod.node for _, name in pod.claims}
        self._store.waiting.wait(key, [(CLAIM, key[1], name) for name in claims])
        unbound = {name: claim for name in claims if (claim := self._unbound(key[1], name))}
        warned = {pod.name: warning for pod in pods if not pod.started and (warning := self._warning(pod))}
        return Told(denied, warned, unbound)

    def _warning(self, pod: Pod) -> tuple[str, str] | None:
        """Return reason and message of the newest warning about a pod; a volume is named with its claim."""
        if (event := _newest(self.warnings(pod.uid))) is None:
            return None
        message = event["message"]
        for volume, name in pod.claims:
            claim = self.claim(pod.job[1], name)
            for known in (volume, claim["spec"].get("volumeName") if claim else None):
                message = message.replace(f'volume "{known}"', f'volume "{known}" ({CLAIM} {name})')
        return event["reason"], message

    def _unbound(self, namespace: str, name: str) -> Unbound | None:
        """Return what is known of a claim; None if it has its volume, or is not known."""
        found = self.claim(namespace, name)
        if found is None or (phase := found["status"].get("phase", "Pending")) == "Bound":
            return None
        spec = found["spec"]
        size = spec.get("resources", {}).get("requests", {}).get("storage", "no size")
        storage_class = spec.get("storageClassName") or "none"
        event = _newest(self.warnings(found["metadata"]["uid"]))
        what = f"{CLAIM} {name} ({size}, storageClassName: {storage_class}) is {phase}"
        return Unbound(what, event["message"] if event else "")

    def about(self, child: Child) -> list[Obj]:
        """Return the events that tell of a workload. Of what it has made, an earlier one of its name may have made an
        equal one, whose events outlive it."""
        made = self.warnings((child.job[1], child.name))
        return [*self.warnings(child.uid), *(event for event in made if event["lastTimestamp"] >= child.created)]

    def warnings(self, about: str | Place) -> list[Obj]:
        """Return the events about an object, by its uid."""
        return [found.event for found in self._warnings.about(about)]

    def put_event(self, obj: Obj) -> None:
        about, uid, namespace = obj["involvedObject"], obj["metadata"]["uid"], obj["metadata"]["namespace"]
        telling, owner = _TELLING.get(about.get("kind", "")), concerned(about)
        if owner is None and (telling is None or obj.get("reason") not in telling):
            return
        name, object_uid = (owner.name, owner.uid) if owner else (about.get("name", ""), about.get("uid", ""))
        found = WarningEvent(object_uid or (namespace, name), namespace, version_of(obj), _event(obj))
        known = self._warnings.get(uid)
        # That it has happened once more is no news.
        if self._warnings.put(uid, found) and (known is None or known.event["message"] != found.event["message"]):
            self._store.wake_owner(namespace, name, object_uid)
            self._store.waiting.wake((about.get("kind", ""), namespace, name))


def _place(obj: Obj) -> Place:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _newest(events: list[Obj]) -> Obj | None:
    return max(events, key=lambda event: str(event["lastTimestamp"]), default=None)


def _event(obj: Obj) -> Obj:
    """Return what is kept of an event; who uses the newer API tells its time elsewhere, and to the microsecond."""
    time = obj.get("lastTimestamp") or (obj.get("series") or {}).get("lastObservedTime") or obj.get("eventTime") or ""
    said = {name: obj.get(name) or "" for name in ("reason", "message")}
    return {**said, "lastTimestamp": time[:19] + "Z" if time else ""}


def _claim(obj: Obj) -> Obj:
    """Return what is asked about a claim, by whoever reads a live one too."""
    metadata, spec = obj["metadata"], obj.get("spec", {})
    kept = _only(metadata, ("namespace", "name", "uid", "resourceVersion", "deletionTimestamp"))
    labels = _only(metadata.get("labels") or {}, (LABEL_JOB_UID,))
    owners = [owner] if (owner := controller(metadata)) else []
    kept |= ({"labels": labels} if labels else {}) | ({"ownerReferences": owners} if owners else {})
    status = _only(obj.get("status", {}), ("phase",))
    spec = _only(spec, ("accessModes", "storageClassName", "resources", "volumeName"))
    return {"metadata": kept, "spec": spec, "status": status}


def _only(found: Obj, names: Iterable[str]) -> Obj:
    return {name: found[name] for name in names if name in found}
