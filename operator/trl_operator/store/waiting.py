"""Which job waits for what."""

from collections.abc import Callable, Iterable

from trl_operator.plan.observation import Key

Thing = tuple[str, str, str]
"""Kind, namespace and name of what a job waits for, be it another job."""


class Waiting:
    """Tells of the jobs that wait for a thing when something has happened to it."""

    def __init__(self, changed: Callable[[Key], None]) -> None:
        self._changed = changed
        self._things: dict[Key, frozenset[Thing]] = {}
        self._jobs: dict[Thing, set[Key]] = {}

    def wait(self, key: Key, things: Iterable[Thing]) -> None:
        """Have the job told when something happens to one of these, and to no others any more."""
        wanted = frozenset(things)
        for thing in self._things.pop(key, frozenset()):
            self._jobs[thing].discard(key)
            if not self._jobs[thing]:
                del self._jobs[thing]
        if wanted:
            self._things[key] = wanted
        for thing in wanted:
            self._jobs.setdefault(thing, set()).add(key)

    def wake(self, thing: Thing) -> None:
        """Tell of all jobs that wait for this."""
        for key in list(self._jobs.get(thing, ())):
            self._changed(key)

    def is_waited_for(self, thing: Thing) -> bool:
        return thing in self._jobs

    def waited_for(self, kind: str) -> list[Thing]:
        return [thing for thing in self._jobs if thing[0] == kind]
