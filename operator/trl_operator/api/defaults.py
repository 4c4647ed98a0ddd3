"""What jobDefaults add to a job: as they are now, or as the job's run was pinned to them."""

import json
from dataclasses import replace
from typing import Any, Final

from trl_contract.acceptance import secrets
from trl_contract.cluster import ClusterSpec
from trl_operator.api.job import Job
from trl_operator.api.status import DefaultQueue, Defaults, DefaultsSet
from trl_operator.api.stored import read_status
from trl_operator.jobdefaults import Default, filled, items, part, place_of, unsaid
from trl_operator.jobdefaults import Defaults as Values

Obj = dict[str, Any]

RESOLVED: Final = "resolved.json"
"""Key of the run's ConfigMap with what jobDefaults have added: the part of a spec, and which set says each item."""
_QUEUE, _TTL = ("queue", ""), ("runPolicy.ttlSecondsAfterFinished", "")
_MAX_SETS = 16


def with_defaults(job: Job, values: Values) -> Job:
    """Return a job with these defaults, and no others, where its spec says nothing. Raises ValidationError if it would
    then have more entries of a list than a spec may have."""
    own = job.own or job.cluster
    wire, left = _left(job, values)
    if not left:
        return replace(job, own=own, cluster=own, defaults=None)
    return replace(job, own=own, cluster=ClusterSpec.model_validate(filled(wire, left)), defaults=_told(left))


def as_begun(job: Job, status: Obj) -> Job:
    """Return a job of which an attempt has begun, or that has ended, with what of its defaults decides about it from
    then on. All others are in its run's ConfigMap."""
    told = read_status({"defaults": status["defaults"]}).defaults if "defaults" in status else None
    if told is None:
        return job
    values = {}
    if told.queue:
        values[_QUEUE] = Default(told.queue.to_wire(), "")
    if told.ttl_seconds_after_finished is not None:
        values[_TTL] = Default(told.ttl_seconds_after_finished, "")
    _, left = _left(job, values)
    return replace(
        with_defaults(job, values), defaults=_without(told, {field for field, _ in values.keys() - left.keys()})
    )


def resolved(job: Job, values: Values) -> str | None:
    """Return RESOLVED of a run of `job` with these defaults; None if its spec says all of it itself."""
    _, left = _left(job, values)
    if not left:
        return None
    origins = {place_of(item): default.origin for item, default in left.items()}
    return json.dumps({"spec": part(left), "origins": origins}, ensure_ascii=False)


def pinned(job: Job, text: str | None) -> Job:
    """Return a job with the defaults that `text`, RESOLVED of its run, tells of."""
    said = json.loads(text) if text else {"spec": {}, "origins": {}}
    origins = said["origins"]
    values = {item: Default(value, origins.get(place_of(item), "")) for item, value in items(said["spec"]).items()}
    return with_defaults(job, values)


def origin(job: Job, field: str) -> str:
    """Return words that say which jobDefaults a field is of, to stand behind its name; empty if the job has it."""
    sets = job.defaults.sets if job.defaults else []
    found = [each.name for each in sets if field in each.fields]
    return f" (of jobDefaults {', '.join(found)})" if found else ""


def _left(job: Job, values: Values) -> tuple[Obj, Values]:
    """Return the cluster's part of the job's own spec in its JSON form, and those values of which the job says nothing:
    it also does by the label of its queue, and by a Secret that a variable carries."""
    if not values:
        return {}, values
    parts = set(ClusterSpec.model_fields)
    wire = (job.own or job.cluster).model_dump(mode="json", by_alias=True, exclude_none=True, include=parts)
    said = {("env", name) for name in secrets(job.training)} | ({_QUEUE} if job.queue_label else set())
    return wire, {item: value for item, value in unsaid(wire, values).items() if item not in said}


def _without(told: Defaults, fields: set[str]) -> Defaults | None:
    """Return what is told of defaults but for these fields, which the job has said itself since."""
    sets = [
        DefaultsSet(name=each.name, fields=[name for name in each.fields if name not in fields]) for each in told.sets
    ]
    found = Defaults(
        sets=[each for each in sets if each.fields],
        queue=None if _QUEUE[0] in fields else told.queue,
        ttl_seconds_after_finished=None if _TTL[0] in fields else told.ttl_seconds_after_finished,
    )
    return None if found == Defaults() else found


def _told(values: Values) -> Defaults:
    fields: dict[str, list[str]] = {}
    for field, key in sorted(values):
        of = fields.setdefault(values[field, key].origin, [])
        of += [field] if field not in of else []
    queue, ttl = values.get(_QUEUE), values.get(_TTL)
    return Defaults(
        sets=[DefaultsSet(name=name, fields=named) for name, named in sorted(fields.items())][:_MAX_SETS],
        queue=DefaultQueue.model_validate(queue.value) if queue else None,
        ttl_seconds_after_finished=ttl.value if ttl else None,
    )
