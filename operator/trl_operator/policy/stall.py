"""Whether an attempt that runs gets on, by what its reports say.

Its ranks have a watchdog of their own, which sees more; this is for what a watchdog does not see: an image of somebody
else's, or a watchdog that hangs too. Silence is no proof: reports may be lost on their way.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from trl_operator.api.reported import ProgressStatus
from trl_operator.api.status import JobStatus
from trl_operator.plan.observation import Mark, parse_time

STALLED = "Stalled"
"""Reason of an attempt that is ended since it does not get on."""
SHORTEST_LOOK_SECONDS = 10.0


@dataclass(frozen=True)
class Look:
    """What the reports tell of an attempt that runs."""

    stalled: bool
    silent: bool
    message: str
    next_seconds: float
    """When they are to be looked at again."""


def mark(before: Mark | None, status: JobStatus) -> Mark | None:
    """Return what the attempt's reports say by now; None before the first."""
    progress = status.progress
    heard = parse_time(progress.last_update_time) if progress else None
    if progress is None or heard is None or progress.attempt != status.attempt:
        return None
    said = (progress.attempt, progress.step, progress.activity, progress.display)
    return before if before is not None and before.said == said else Mark(said, heard)


def look(marked: Mark | None, status: JobStatus, timeout_seconds: int, now: datetime) -> Look:
    """Return what is to be said of an attempt whose pods all run.

    It has stalled when reports have come for the whole timeout and say that it trains, at the same step. Whatever else
    it does, saving or evaluating, may take long, and its watchdog knows of it.
    """
    timeout, running = timedelta(seconds=timeout_seconds), status.condition("Running")
    heard = _heard(status.progress, marked) or parse_time(running.last_transition_time if running else None) or now
    silence_left = (heard + timeout - now).total_seconds()
    if silence_left <= 0:
        message = f"nothing was heard of attempt {status.attempt} for {timeout_seconds} s: it may well get on"
        return Look(False, True, message, float(timeout_seconds))
    if marked is None:
        return Look(False, False, "", max(silence_left, SHORTEST_LOOK_SECONDS))
    _, step, activity, _ = marked.said
    told = heard - marked.since
    if activity == "training" and told >= timeout:
        message = f"its reports have said for {int(told.total_seconds())} s that it trains, and always at step {step}"
        return Look(True, False, message, SHORTEST_LOOK_SECONDS)
    left = min(silence_left, (timeout - told).total_seconds())
    return Look(False, False, f"{activity}, step {step}", max(left, SHORTEST_LOOK_SECONDS))


def _heard(progress: ProgressStatus | None, marked: Mark | None) -> datetime | None:
    return parse_time(progress.last_update_time) if progress and marked else None
