"""What runs an attempt: its workload, of one kind or another.

Each kind is a backend, one module that knows all about it and does no I/O. Nobody else knows one by its name: what is
to be sent, watched and read is asked for here.
"""

from collections.abc import Iterable
from typing import Any, Final, Protocol

from trl_contract.cluster import BackendName
from trl_operator.api.job import Job
from trl_operator.api.status import Run
from trl_operator.backend import pytorchjob, trainjob
from trl_operator.plan import observation
from trl_operator.plan.observation import Child, Owner, Pod
from trl_operator.render.manifests import Installation
from trl_operator.resource import Resource

Obj = dict[str, Any]


class Backend(Protocol):
    """What a backend's module has."""

    @property
    def NAME(self) -> BackendName:
        """What specs and settings call it."""

    @property
    def KIND(self) -> str:
        """Kind of its workloads."""

    @property
    def RESOURCE(self) -> Resource:
        """Where they live, and what is watched of them beside their pods."""

    @property
    def MISSING(self) -> str:
        """What to do in a cluster that has no such kind."""

    @property
    def CONTAINER(self) -> str:
        """Name of the trainer's container in their pods."""

    @property
    def LABEL_INDEX(self) -> str:
        """Label of a pod with its place among the nodes, from 0."""

    @property
    def BESIDE(self) -> tuple[Resource, ...]:
        """Kinds of what an attempt needs beside its workload, each by the name of the workload."""

    def beside(self, job: Job, attempt: int, installation: Installation) -> list[tuple[Resource, Obj]]:
        """Return what an attempt needs beside its workload, and before it."""

    def manifest(self, job: Job, attempt: int, installation: Installation) -> Obj:
        """Return the workload of an attempt; its name is `job.child_name(attempt)`."""

    def is_early(self, words: str) -> bool:
        """Whether a workload was refused, in these words, since what was made before it is not known to all yet."""

    def child_from(self, obj: Obj) -> Child | None:
        """Return what became of a workload; None if no job controls it: whatever its labels say, it is not ours."""

    def maker(self, pod: Obj) -> Owner | None:
        """Return the workload that a pod is of, by its ownerReferences; None if it is of none of this kind.

        Labels say nothing: whoever may create anything that makes pods may write them.
        """

    def concerned(self, about: Obj) -> Owner | None:
        """Return the workload that an event about this object tells of; None if it is of none of this kind."""

    @property
    def DENIED(self) -> frozenset[str]:
        """Reasons of those events that tell why pods could not be created."""


BACKENDS: Final[dict[BackendName, Backend]] = {"pytorchjob": pytorchjob, "trainjob": trainjob}


def backend_for(job: Job, run: Run | None, default: BackendName) -> Backend:
    """Return what runs the attempts of a job: what its run is pinned to, else what its spec names, else the default."""
    return BACKENDS[run.backend if run else job.cluster.backend or default]


def child_from(obj: Obj) -> Child | None:
    """Return what became of a workload of any kind; None if no job controls it."""
    return next((backend.child_from(obj) for backend in BACKENDS.values() if obj["kind"] == backend.KIND), None)


def resource_of(child: Child) -> Resource:
    """Return where a workload lives."""
    return _backend_of(child).RESOURCE


def _backend_of(child: Child) -> Backend:
    return next(backend for backend in BACKENDS.values() if child.kind == backend.KIND)


def pod_from(obj: Obj) -> Pod | None:
    """Return what matters of a pod; None if its labels name no attempt of a job: anybody may write labels.

    One that is of no backend's workload has no `child`, and so it belongs to no attempt.
    """
    for backend in BACKENDS.values():
        if owner := backend.maker(obj):
            return observation.pod_from(obj, owner, backend.CONTAINER, backend.LABEL_INDEX)
    return observation.pod_from(obj)


def concerned(about: Obj) -> Owner | None:
    """Return the workload of any kind that an event about this object tells of; None if it tells of none."""
    return next((owner for backend in BACKENDS.values() if (owner := backend.concerned(about))), None)


def denials(child: Child, events: Iterable[Obj]) -> tuple[str, ...]:
    """Return why pods of a workload could not be created, newest first; `events` are those that tell of it."""
    found = [event for event in events if event["reason"] in _backend_of(child).DENIED]
    found.sort(key=lambda event: event["lastTimestamp"], reverse=True)
    return tuple(event["message"] for event in found)
