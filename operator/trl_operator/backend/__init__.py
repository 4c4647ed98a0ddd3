"""What runs an attempt: its workload, of one kind or another.

Each kind is a backend, one module that knows all about it and does no I/O. Nobody else knows one by its name: what is
to be sent, watched and read is asked for here.
"""

from collections.abc import Iterable
from typing import Any, Final, Protocol

from trl_operator.api.job import Job
from trl_operator.backend import pytorchjob
from trl_operator.plan import observation
from trl_operator.plan.observation import Child, Owner, Pod
from trl_operator.render.manifests import Installation
from trl_operator.resource import Resource

Obj = dict[str, Any]


class Backend(Protocol):
    """What a backend's module has."""

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

    def manifest(self, job: Job, attempt: int, installation: Installation) -> Obj:
        """Return the workload of an attempt; its name is `job.child_name(attempt)`."""

    def child_from(self, obj: Obj) -> Child | None:
        """Return what became of a workload; None if no job controls it: whatever its labels say, it is not ours."""

    def maker(self, pod: Obj) -> Owner | None:
        """Return the workload that a pod is of, by its ownerReferences; None if it is of none of this kind."""

    @property
    def DENIED(self) -> str:
        """Reason of the events of a workload that tell why pods could not be created."""


BACKENDS: Final[tuple[Backend, ...]] = (pytorchjob,)
"""The first one runs new attempts."""


def backend_for(job: Job, kind: str = "") -> Backend:
    """Return what runs an attempt of the job; `kind` is that of its workload, if it has one already."""
    return next((backend for backend in BACKENDS if kind == backend.KIND), BACKENDS[0])


def child_from(obj: Obj) -> Child | None:
    """Return what became of a workload of any kind; None if no job controls it."""
    return next((backend.child_from(obj) for backend in BACKENDS if obj["kind"] == backend.KIND), None)


def resource_of(child: Child) -> Resource:
    """Return where a workload lives."""
    return next(backend.RESOURCE for backend in BACKENDS if child.kind == backend.KIND)


def pod_from(obj: Obj) -> Pod | None:
    """Return what matters of a pod; None if its labels name no attempt of a job: anybody may write labels.

    One that is of no backend's workload has no `child`, and so it belongs to no attempt.
    """
    for backend in BACKENDS:
        if owner := backend.maker(obj):
            return observation.pod_from(obj, owner, backend.CONTAINER, backend.LABEL_INDEX)
    return observation.pod_from(obj)


def denials(child: Child, events: Iterable[Obj]) -> tuple[str, ...]:
    """Return why pods of a workload could not be created, newest first; `events` are those about it."""
    reason = next(backend.DENIED for backend in BACKENDS if child.kind == backend.KIND)
    found = [event for event in events if event["reason"] == reason]
    found.sort(key=lambda event: event["lastTimestamp"], reverse=True)
    return tuple(event["message"] for event in found)
