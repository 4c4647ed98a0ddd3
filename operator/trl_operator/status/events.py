"""Which transitions of the status are told as events."""

from dataclasses import dataclass
from typing import Literal

from trl_operator.plan.observation import workload
from trl_operator.status.conditions import Status, condition
from trl_operator.status.starting import WAITING_REASONS


@dataclass(frozen=True)
class Event:
    """A Kubernetes event about a job."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def events(before: Status, after: Status) -> list[Event]:
    """Return what happened between two statuses, oldest first."""
    found = []
    accepted = condition(after, "Accepted")
    if accepted.get("status") == "False" and accepted.get("reason") != condition(before, "Accepted").get("reason"):
        found.append(Event("Warning", accepted["reason"], accepted["message"]))
    upstream = condition(after, "UpstreamReady")
    if upstream.get("status") == "False" and upstream.get("reason") != condition(before, "UpstreamReady").get("reason"):
        found.append(Event("Normal", upstream["reason"], upstream["message"]))
    if after.get("restarts", 0) > before.get("restarts", 0):
        running = condition(after, "Running")
        found.append(Event("Warning", "AttemptFailed", f"{running['reason']}: {running['message']}"))
    if (started := workload(after)) and not workload(before):
        message = f"attempt {after['attempt']} is {started['kind']} {started['name']}"
        found.append(Event("Normal", "AttemptStarted", message))
    if condition(after, "Running").get("status") == "True" != condition(before, "Running").get("status"):
        found.append(Event("Normal", "Running", condition(after, "Running")["message"]))
    waits = condition(after, "Running")
    if waits.get("reason") in WAITING_REASONS and waits["reason"] != condition(before, "Running").get("reason"):
        found.append(Event("Warning", waits["reason"], waits["message"]))
    rests = condition(after, "Suspended")
    if rests and rests["status"] != condition(before, "Suspended").get("status"):
        found.append(Event("Normal", rests["reason"], rests["message"]))
    if "completionTime" in after and "completionTime" not in before:
        ended = condition(after, "Succeeded")
        if ended["status"] == "True" or ended["reason"] == "Cancelled":
            found.append(Event("Normal", ended["reason"], ended["message"]))
        else:
            found.append(Event("Warning", "Failed", f"{ended['reason']}: {ended['message']}"))
    return found
