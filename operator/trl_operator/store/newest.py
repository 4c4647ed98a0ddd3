"""What is kept of objects that are only told of: each in its newest known state."""

from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

from trl_operator.store.watched import covers

Obj = dict[str, Any]


class Seen(Protocol):
    """What is kept of one object."""

    @property
    def about(self) -> Hashable:
        """What it tells of; several may tell of one thing."""

    @property
    def namespace(self) -> str: ...

    @property
    def version(self) -> int: ...


T = TypeVar("T", bound=Seen)


class Newest(Generic[T]):
    """Objects by their uid and by what they are about; `gone` is called with each that is forgotten."""

    def __init__(self, gone: Callable[[T], None] = lambda _: None) -> None:
        self._gone = gone
        self._known: dict[str, T] = {}
        self._about: dict[Hashable, dict[str, T]] = {}

    def put(self, uid: str, found: T) -> bool:
        """Take over the state of an object; return False, and do nothing, if one as new is known."""
        known = self._known.get(uid)
        if known is not None:
            if known.version >= found.version:
                return False
            self._discard(uid, known)
        self._known[uid] = found
        self._about.setdefault(found.about, {})[uid] = found
        return True

    def get(self, uid: str) -> T | None:
        return self._known.get(uid)

    def about(self, what: Hashable) -> list[T]:
        """Return what tells of this."""
        return list(self._about.get(what, {}).values())

    def newest(self, what: Hashable) -> T | None:
        """Return what tells of this, and was changed last."""
        return max(self.about(what), key=lambda found: found.version, default=None)

    def drop(self, obj: Obj) -> None:
        """Forget this very object."""
        self._forget(obj["metadata"]["uid"])

    def sweep(self, namespaces: list[str], uids: set[str], version: int) -> None:
        """Forget those that a list of this version no longer has."""
        for uid, known in list(self._known.items()):
            if covers(namespaces, known.namespace) and uid not in uids and known.version <= version:
                self._forget(uid)

    def _forget(self, uid: str) -> None:
        if known := self._known.pop(uid, None):
            self._discard(uid, known)
            self._gone(known)

    def _discard(self, uid: str, known: T) -> None:
        siblings = self._about[known.about]
        del siblings[uid]
        if not siblings:
            del self._about[known.about]
