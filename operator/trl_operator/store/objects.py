"""What is kept of a job."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trl_operator.api.stored import FIELDS
from trl_operator.constants import LABEL_QUEUE, MANAGER_PROGRESS
from trl_operator.plan.observation import Attempt, Key, current_attempt, parse_time
from trl_operator.plan.upstream import used
from trl_operator.policy.preemption import has_checkpoint

Obj = dict[str, Any]

_SILENT = frozenset({*FIELDS[MANAGER_PROGRESS], "effective", "warnings"})
"""Status fields whose change is no news: reports come for hours, and the spec is known by its generation. That nothing
is evaluated is: it becomes a condition; and so is the first checkpoint of an attempt, which may end a preference."""


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job as its watch told it last. Its spec may be big: whoever decides about it reads the live object."""

    key: Key
    uid: str
    version: int
    created: str
    """RFC 3339."""
    attempt: Attempt | None
    phase: str
    ended: bool
    succeeded: bool
    """Its condition Succeeded is True."""
    observed: bool
    """Its status is about this generation of it, and tells its end as this version does."""
    has_ttl: bool
    uses: tuple[Key, ...]
    """Jobs whose results it uses."""
    news: int
    """Differs when there is something to look at: another generation or queue, deletion, or a status that somebody
    changed."""


def key_of(obj: Obj) -> Key:
    """Return the key of a job."""
    return obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]


def version_of(obj: Obj) -> int:
    """Return an object's resourceVersion; of two states of an object the greater one is the newer."""
    return int(obj["metadata"]["resourceVersion"])


def stored_job(obj: Obj) -> StoredJob:
    """Return what is kept of a job."""
    metadata, status = obj["metadata"], obj.get("status", {})
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", ())}
    return StoredJob(
        key=key_of(obj),
        uid=metadata["uid"],
        version=version_of(obj),
        created=metadata.get("creationTimestamp") or "",
        attempt=current_attempt(obj),
        phase=status.get("phase", "Pending"),
        ended="completionTime" in status,
        succeeded=conditions.get("Succeeded") == "True",
        observed=status.get("observedGeneration") == metadata.get("generation")
        and ("completionTime" not in status or "Finished" in conditions),
        has_ttl="ttlSecondsAfterFinished" in {**obj.get("spec", {}).get("runPolicy", {}), **status.get("defaults", {})},
        uses=used(obj),
        news=news(obj, status),
    )


def news(obj: Obj, status: Obj) -> int:
    """Return `StoredJob.news` of an object with this status."""
    told = {name: value for name, value in status.items() if name not in _SILENT}
    # Of the object: whoever is about to write its own fields leaves this one as it is.
    reported = obj.get("status", {})
    told["skipped"] = reported.get("evaluation", {}).get("skipped")
    told["saved"] = _has_checkpoint(reported.get("checkpoints", ()), status)
    metadata = obj["metadata"]
    queue = metadata.get("labels", {}).get(LABEL_QUEUE)
    of_it = [metadata.get("generation"), metadata.get("deletionTimestamp"), queue]
    return hash(json.dumps([*of_it, told], sort_keys=True))


def _has_checkpoint(checkpoints: Iterable[Obj], status: Obj) -> bool:
    """Whether the attempt that runs, by this status, has published one of these."""
    running = (
        found for found in status.get("conditions", ()) if (found["type"], found["status"]) == ("Running", "True")
    )
    since = parse_time(next((found["lastTransitionTime"] for found in running), None))
    return since is not None and has_checkpoint([found.get("time", "") for found in checkpoints], since)
