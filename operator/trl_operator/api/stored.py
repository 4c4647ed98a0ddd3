"""A stored status: how it is read, and which part of it each field manager writes."""

from typing import Any

from pydantic import ValidationError

from trl_contract.base import Model
from trl_contract.cautions import REASONS
from trl_operator.api.parts import Owner
from trl_operator.api.status import Effective, JobStatus
from trl_operator.constants import MANAGER_PROGRESS, MANAGER_STATUS


def read_status(stored: dict[str, Any]) -> JobStatus:
    """Return the typed form of a stored status. What another version of the operator has written and this one cannot
    read is left out, each item by itself."""
    known = dict(stored)
    try:
        return JobStatus.model_validate(known)
    except ValidationError as error:
        places = {tuple(found["loc"][:2]) if len(found["loc"]) > 2 else found["loc"][:1] for found in error.errors()}
    for name in {str(place[0]) for place in places}:
        bad = {place[1] for place in places if place[0] == name and len(place) > 1}
        if isinstance(known[name], list) and (name,) not in places:
            known[name] = [item for index, item in enumerate(known[name]) if index not in bad]
        else:
            del known[name]
    return JobStatus.model_validate(known)


def _fields(model: type[Model], manager: str) -> tuple[str, ...]:
    found = []
    for field in model.model_fields.values():
        owner = next((item.manager for item in field.metadata if isinstance(item, Owner)), MANAGER_STATUS)
        if owner == manager:
            found.append(str(field.alias))
    return tuple(found)


FIELDS = {manager: _fields(JobStatus, manager) for manager in (MANAGER_STATUS, MANAGER_PROGRESS)}
"""Names of the fields that each manager writes, beside its part of `effective` and of `warnings`."""
_EFFECTIVE = {manager: _fields(Effective, manager) for manager in FIELDS}


def owned(status: dict[str, Any], manager: str) -> dict[str, Any]:
    """Return the part of a stored status that a field manager writes."""
    found = {name: status[name] for name in FIELDS[manager] if name in status}
    effective = {name: value for name, value in status.get("effective", {}).items() if name in _EFFECTIVE[manager]}
    # By what it is about: what the spec alone says is known without a trainer.
    warnings = [
        found for found in status.get("warnings", ()) if (found["reason"] in REASONS) == (manager == MANAGER_STATUS)
    ]
    return found | ({"effective": effective} if effective else {}) | ({"warnings": warnings} if warnings else {})


def written(status: JobStatus) -> dict[str, Any]:
    """Return what trl-operator-status writes of a status, why the job does not run among it; lists that hold nothing
    are left out."""
    status = status.model_copy(update={"waiting": status.why_not()})
    return {name: value for name, value in owned(status.to_wire(), MANAGER_STATUS).items() if value != []}
