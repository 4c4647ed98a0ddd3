"""Which job uses the result of which."""

from trl_operator.plan.observation import Key
from trl_operator.store.objects import StoredJob
from trl_operator.store.waiting import Waiting


class Dependants:
    """An index over the jobs that have not ended: nobody lists all jobs to learn who needs one."""

    def __init__(self) -> None:
        self._users = Waiting(lambda _: None)
        self._pending: dict[Key, tuple[Key, ...]] = {}

    def put(self, job: StoredJob) -> None:
        """Take over the newest state of a job."""
        self._users.wait(job.key, () if job.ended else job.uses)
        # What an attempt uses is pinned, whatever becomes of the jobs that have left it.
        if job.uses and not job.ended and job.attempt is None:
            self._pending[job.key] = job.uses
        else:
            self._pending.pop(job.key, None)

    def drop(self, key: Key) -> None:
        """Forget a job that is gone."""
        self._users.wait(key, ())
        self._pending.pop(key, None)

    def has(self, key: Key) -> bool:
        """Return whether a job that has not ended uses the result of this one."""
        return self._users.is_waited_for(key)

    def waits_for(self, key: Key) -> tuple[Key, ...]:
        """Return the jobs whose results this one has yet to get."""
        return self._pending.get(key, ())
