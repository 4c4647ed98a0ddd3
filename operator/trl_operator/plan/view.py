"""What was observed of a job, all that its next status is decided on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from trl_operator.api.status import Run
from trl_operator.plan.acceptance import Blocker
from trl_operator.plan.admission import NOTHING_SAID, Admission
from trl_operator.plan.observation import Child, Mark, Pod
from trl_operator.plan.outcome import exit_record

Course = Literal["goes on", "to be ended", "ends", "is over"]
"""How far an attempt is that has not succeeded: nothing has failed; it has, and its workload is to be deleted; what is
left of it ends by itself; the next one may begin."""


@dataclass(frozen=True)
class Unbound:
    """A claim that has no volume."""

    what: str
    """Its name, size, class and phase."""
    why: str = ""
    """The newest warning about it. Without one it may well get its volume, like one that waits for a pod's node."""


@dataclass(frozen=True)
class Told:
    """What others tell of an attempt that has yet to run."""

    denials: tuple[str, ...] = ()
    """Why pods could not be created, newest first."""
    pods: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Reason and message of the newest warning about a pod, by its name."""
    claims: Mapping[str, Unbound] = field(default_factory=dict)
    """The claims without a volume, by name."""


@dataclass(frozen=True)
class View:
    """`child` is the workload of status.attempt, `pods` are those of that attempt."""

    child: Child | None = None
    others: tuple[Child, ...] = ()
    pods: tuple[Pod, ...] = ()
    told: Told = Told()
    admission: Admission = NOTHING_SAID
    """What Kueue says of the attempt; of meaning if it is to wait for Kueue."""
    blocker: Blocker | None = None
    run: Run | None = None
    """What the next attempt has in common with all others."""
    reused: str = ""
    """What is to be said of the claim, if an earlier job has left it; empty: it is the job's own, or named."""
    mark: Mark | None = None
    """What the attempt's reports say, and since when."""
    older_waits: bool = False
    """An older job, like this one, has nodes for some of its pods only."""

    def succeeded(self, num_nodes: int) -> bool:
        """Whether the attempt has. The pods' records have the word: of all nodes they outweigh what became of the
        workload, and one that speaks of failure outweighs its success."""
        if not all(pod.finished for pod in self.pods):
            return False
        said = {pod.index: record.outcome for pod in self.pods if (record := exit_record(pod))}
        if any(outcome != "Succeeded" for outcome in said.values()):
            return False
        return len(said) >= num_nodes or (self.child is not None and self.child.state == "succeeded")

    def course(self, now: datetime, *, failed: bool = False) -> Course:
        """Return how far the attempt is, which has not succeeded; `failed`: once it was seen to have failed.

        A workload of which a pod has failed is left to end the others and to say so: a Job says so after that, and one
        that is deleted before takes their logs away. On a lost node nobody ends a pod, and nobody says so.
        """
        child, ended = self.child, all(pod.finished for pod in self.pods)
        active = child is not None and child.state == "active" and not child.deleting
        ends_itself = active and any(pod.phase == "Failed" and not pod.gone for pod in self.pods)
        failed = failed or any(pod.gone and pod.phase != "Succeeded" for pod in self.pods)
        if active:
            failed = failed or (ends_itself and not ended)
        else:
            # One that says it succeeded while a pod's record says otherwise has failed, once the pods have ended.
            failed = failed or child is None or child.deleting or child.state == "failed" or ended
        if not failed:
            return "goes on"
        if active and not ends_itself:
            return "to be ended"
        waits = (ends_itself and ended) or not self.pods_are_over(now)
        return "ends" if waits else "is over"

    def pods_are_over(self, now: datetime) -> bool:
        """Whether nobody has to wait for the end of a pod any longer."""
        return all(pod.is_over(now) for pod in self.pods)
