"""How long an attempt may hold nodes for pods that find none.

Kubernetes places pods one by one. Two jobs that each got half of their nodes would hold them for ever, and the trainer
waits for its peers without end, since an image pull may take long.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from trl_contract.cluster import ClusterSpec
from trl_operator.plan.observation import Pod

START_TIMEOUT = "StartTimeout"
"""Reason of an attempt that gives its nodes back."""


def half_since(pods: Iterable[Pod], num_nodes: int) -> datetime | None:
    """Return since when some pods of an attempt have a node while others have none; None if all or none have. A pod
    that pulls its image has a node, and so has one that has ended."""
    times = [pod.scheduled_time for pod in pods if pod.node]
    if not 0 < len(times) < num_nodes:
        return None
    return min((time for time in times if time is not None), default=None)


def release_time(since: datetime, timeout_seconds: int, *, older_waits: bool) -> datetime:
    """Return when such an attempt gives its nodes back, to start again later.

    Of jobs that hold each other's nodes the younger give way first (`older_waits`: an older job is in the same state);
    the oldest waits one more timeout, so that no two give way at the same time, and again, and again.
    """
    return since + timedelta(seconds=timeout_seconds * (1 if older_waits else 2))


def seconds_left(spec: ClusterSpec, pods: Sequence[Pod], now: datetime, *, ran: bool, older_waits: bool) -> float:
    """Return the seconds until an attempt gives its nodes back; infinite unless others of its pods find none. One that
    `ran` once has had all its nodes."""
    since = half_since(pods, spec.num_nodes)
    if since is None or ran:
        return float("inf")
    timeout = spec.run_policy.start_timeout_seconds
    return (release_time(since, timeout, older_waits=older_waits) - now).total_seconds()


def message(spec: ClusterSpec, pods: Iterable[Pod]) -> str:
    """Return what the attempt that gives its nodes back was short of."""
    short_of = next((pod.unschedulable for pod in pods if pod.unschedulable), "they are not there yet")
    seconds = spec.run_policy.start_timeout_seconds
    return f"some pods found no node in runPolicy.startTimeoutSeconds ({seconds}): {short_of}"
