"""Kueue's Workloads, cut down to what they say of the workloads of jobs."""

from dataclasses import dataclass
from typing import Any

from trl_operator.backend import BACKENDS
from trl_operator.kube import WORKLOADS
from trl_operator.plan.admission import NOT_ENABLED, NOTHING_SAID, Admission, admission_from
from trl_operator.plan.observation import Child, controller
from trl_operator.store.newest import Newest
from trl_operator.store.objects import version_of
from trl_operator.store.store import Store
from trl_operator.store.watched import Watched

Obj = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Known:
    """A Workload, and the workload that it is of."""

    about: str
    """Uid of its owner."""
    namespace: str
    version: int
    owner: str
    admission: Admission


class Admissions:
    """Workloads; the store wakes the job whose attempt one is of. Those of others are not kept."""

    def __init__(self, store: Store, enabled: bool, boosts: bool = False) -> None:
        self._store = store
        self.enabled = enabled
        """Workloads may be read, and are."""
        self.boosts = enabled and boosts
        """Their priority may be boosted, and is."""
        self._known: Newest[Known] = Newest(gone=self._tell)

    def watched(self) -> list[Watched]:
        """Return what has to be watched to keep this."""
        return [Watched(WORKLOADS, self.put, self._known.drop, self._known.sweep)] if self.enabled else []

    def of(self, child: Child | None) -> Admission:
        """Return what Kueue says of an attempt's workload."""
        if not self.enabled:
            return Admission(NOT_ENABLED)
        known = self._known.newest(child.uid) if child else None
        return known.admission if known else NOTHING_SAID

    def put(self, obj: Obj) -> None:
        """Take over the state of a Workload, unless a newer one is known."""
        owner, uid = controller(obj["metadata"]), obj["metadata"]["uid"]
        if owner.get("kind") not in {backend.KIND for backend in BACKENDS.values()}:
            return
        found = Known(owner["uid"], obj["metadata"]["namespace"], version_of(obj), owner["name"], admission_from(obj))
        known = self._known.get(uid)
        if self._known.put(uid, found) and (known is None or known.admission != found.admission):
            self._tell(found)

    def _tell(self, known: Known) -> None:
        self._store.wake_owner(known.namespace, known.owner, known.about)
