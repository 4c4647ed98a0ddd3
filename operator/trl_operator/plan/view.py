"""What was observed of a job, all that its next status is decided on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trl_operator.api.status import Run
from trl_operator.plan.acceptance import Blocker
from trl_operator.plan.admission import NOTHING_SAID, Admission
from trl_operator.plan.observation import Child, Mark, Pod
from trl_operator.plan.outcome import exit_record


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

    def ends_itself(self) -> bool:
        """Whether the workload, of which a pod has failed, ends the others and says so: a Job says so after that."""
        active = self.child is not None and self.child.state == "active" and not self.child.deleting
        return active and any(pod.phase == "Failed" and not pod.gone for pod in self.pods)

    def failed(self) -> bool:
        """Whether the attempt, which has not succeeded, is over or has lost a pod."""
        child = self.child
        if child is None or child.deleting or child.state == "failed":
            return True
        if any(pod.gone and pod.phase != "Succeeded" for pod in self.pods):
            return True
        if self.ends_itself() and not all(pod.finished for pod in self.pods):
            return True
        # One that says it succeeded while a pod's record says otherwise has failed, once the pods have ended.
        return child.state == "succeeded" and all(pod.finished for pod in self.pods)
