"""What jobs and their pods wait for, as far as it is watched: claims, and the events that say why there are no pods."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trl_operator.backend import BACKENDS
from trl_operator.constants import LABEL_JOB_UID
from trl_operator.kube import CLAIMS, EVENTS
from trl_operator.plan.observation import Child, controller
from trl_operator.store.objects import version_of
from trl_operator.store.store import Store
from trl_operator.store.watched import Watched, covers

Obj = dict[str, Any]
Place = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class WarningEvent:
    """An event about a workload."""

    about: str
    """Uid of the workload."""
    namespace: str
    version: int
    event: Obj
    """Its message and times."""


class Needs:
    """Claims by their place, warnings by the uid that they are about; the store wakes whoever waits for one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._claims: dict[Place, Obj] = {}
        self._warnings: dict[str, WarningEvent] = {}
        self._warnings_of: dict[str, dict[str, WarningEvent]] = {}

    def watched(self) -> list[Watched]:
        """Return what has to be watched to keep this."""
        kinds = {backend.KIND for backend in BACKENDS}
        fields = "type=Warning" + (f",involvedObject.kind={kinds.pop()}" if len(kinds) == 1 else "")
        return [
            Watched(CLAIMS, self.put_claim, self.drop_claim, self.sweep_claims),
            Watched(EVENTS, self.put_event, self.drop_event, self.sweep_events, fields=fields),
        ]

    # -- claims

    def claim(self, namespace: str, name: str) -> Obj | None:
        """Return what is known of a claim, in the form of its object; None if none is known."""
        return self._claims.get((namespace, name))

    def put_claim(self, obj: Obj) -> None:
        place, found = _place(obj), _claim(obj)
        known = self._claims.get(place)
        if known is None or version_of(known) < version_of(found):
            self._claims[place] = found
            self._store.waiting.wake(("PersistentVolumeClaim", *place))

    def drop_claim(self, obj: Obj) -> None:
        self._forget_claim(_place(obj), obj["metadata"]["uid"])

    def sweep_claims(self, namespaces: list[str], uids: set[str], version: int) -> None:
        for place, known in list(self._claims.items()):
            uid = known["metadata"]["uid"]
            if covers(namespaces, place[0]) and uid not in uids and version_of(known) <= version:
                self._forget_claim(place, uid)

    def _forget_claim(self, place: Place, uid: str) -> None:
        known = self._claims.get(place)
        if known is not None and known["metadata"]["uid"] == uid:
            del self._claims[place]
            self._store.waiting.wake(("PersistentVolumeClaim", *place))

    # -- events

    def warnings(self, child: Child) -> list[Obj]:
        """Return the events about a workload."""
        return [found.event for found in self._warnings_of.get(child.uid, {}).values()]

    def put_event(self, obj: Obj) -> None:
        about, uid = obj["involvedObject"], obj["metadata"]["uid"]
        found = WarningEvent(about.get("uid", ""), obj["metadata"]["namespace"], version_of(obj), _event(obj))
        known = self._warnings.get(uid)
        if known is not None and known.version >= found.version:
            return
        self._warnings[uid] = found
        self._warnings_of.setdefault(found.about, {})[uid] = found
        # That it has happened once more is no news.
        if known is None or known.event["message"] != found.event["message"]:
            self._store.wake_owner(about.get("namespace", ""), about.get("name", ""), found.about)

    def drop_event(self, obj: Obj) -> None:
        self._forget_event(obj["metadata"]["uid"])

    def sweep_events(self, namespaces: list[str], uids: set[str], version: int) -> None:
        for uid, known in list(self._warnings.items()):
            if covers(namespaces, known.namespace) and uid not in uids and known.version <= version:
                self._forget_event(uid)

    def _forget_event(self, uid: str) -> None:
        if known := self._warnings.pop(uid, None):
            siblings = self._warnings_of[known.about]
            del siblings[uid]
            if not siblings:
                del self._warnings_of[known.about]


def _place(obj: Obj) -> Place:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _event(obj: Obj) -> Obj:
    return {name: obj.get(name) or "" for name in ("reason", "message", "lastTimestamp")}


def _claim(obj: Obj) -> Obj:
    """Return what is asked about a claim, by whoever reads a live one too."""
    metadata, spec = obj["metadata"], obj.get("spec", {})
    kept = _only(metadata, ("namespace", "name", "uid", "resourceVersion", "deletionTimestamp"))
    labels = _only(metadata.get("labels") or {}, (LABEL_JOB_UID,))
    owners = [owner] if (owner := controller(metadata)) else []
    kept |= ({"labels": labels} if labels else {}) | ({"ownerReferences": owners} if owners else {})
    return {"metadata": kept, "spec": _only(spec, ("accessModes", "storageClassName", "resources"))}


def _only(found: Obj, names: Iterable[str]) -> Obj:
    return {name: found[name] for name in names if name in found}
