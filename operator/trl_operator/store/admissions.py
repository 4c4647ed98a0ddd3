"""Kueue's Workloads, cut down to what they say of the workloads of jobs."""

from dataclasses import dataclass
from typing import Any

from trl_operator.backend import BACKENDS
from trl_operator.kube import WORKLOADS
from trl_operator.plan.admission import NOT_ENABLED, NOTHING_SAID, Admission, admission_from
from trl_operator.plan.observation import Child, controller
from trl_operator.store.objects import version_of
from trl_operator.store.store import Store
from trl_operator.store.watched import Watched, covers

Obj = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Known:
    """A Workload, and the workload that it is of."""

    namespace: str
    owner: str
    owner_uid: str
    version: int
    admission: Admission


class Admissions:
    """Workloads by their uid; the store wakes the job whose attempt one is of. Those of others are not kept."""

    def __init__(self, store: Store, enabled: bool, boosts: bool = False) -> None:
        self._store = store
        self.enabled = enabled
        """Workloads may be read, and are."""
        self.boosts = enabled and boosts
        """Their priority may be boosted, and is."""
        self._known: dict[str, Known] = {}
        self._of: dict[str, str] = {}
        """Uid of the newest Workload by that of its owner."""

    def watched(self) -> list[Watched]:
        """Return what has to be watched to keep this."""
        return [Watched(WORKLOADS, self.put, self.drop, self.sweep)] if self.enabled else []

    def of(self, child: Child | None) -> Admission:
        """Return what Kueue says of an attempt's workload."""
        if not self.enabled:
            return Admission(NOT_ENABLED)
        known = self._known.get(self._of.get(child.uid, "")) if child else None
        return known.admission if known else NOTHING_SAID

    def put(self, obj: Obj) -> None:
        """Take over the state of a Workload, unless a newer one is known."""
        owner, uid = controller(obj["metadata"]), obj["metadata"]["uid"]
        if owner.get("kind") not in {backend.KIND for backend in BACKENDS.values()}:
            return
        found = Known(obj["metadata"]["namespace"], owner["name"], owner["uid"], version_of(obj), admission_from(obj))
        known = self._known.get(uid)
        if known is not None and known.version >= found.version:
            return
        self._known[uid], self._of[found.owner_uid] = found, uid
        if known is None or known.admission != found.admission:
            self._tell(found)

    def drop(self, obj: Obj) -> None:
        """Forget this very Workload."""
        self._forget(obj["metadata"]["uid"])

    def sweep(self, namespaces: list[str], uids: set[str], version: int) -> None:
        """Forget those that a list of this version no longer has."""
        for uid, known in list(self._known.items()):
            if covers(namespaces, known.namespace) and uid not in uids and known.version <= version:
                self._forget(uid)

    def _forget(self, uid: str) -> None:
        if known := self._known.pop(uid, None):
            if self._of.get(known.owner_uid) == uid:
                del self._of[known.owner_uid]
            self._tell(known)

    def _tell(self, known: Known) -> None:
        self._store.wake_owner(known.namespace, known.owner, known.owner_uid)
