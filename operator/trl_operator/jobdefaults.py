"""jobDefaults of the chart: what jobs have where their specs say nothing, and how that comes together.

A set says for which jobs it is and what of their specs. Where two say something about the same (FIELDS), a later set
wins over an earlier one, and the job itself over all. An empty list or map in a job wants none at all.
"""

import json
from collections.abc import Iterable, Mapping, Set
from typing import Annotated, Any, Final, NamedTuple

from pydantic import Field, JsonValue, ValidationError, field_validator

from trl_contract.affinity import LabelSelector, LabelSelectorRequirement
from trl_contract.base import Kind, Model, Name
from trl_contract.cluster import ClusterSpec

Obj = dict[str, Any]

FIELDS: Final[dict[str, tuple[str, ...] | None]] = {
    "nodeSelector": (),
    "tolerations": ("key", "effect"),
    "priorityClassName": None,
    "queue": None,
    "backend": None,
    "imagePullSecrets": ("name",),
    "env": ("name",),
    "storage.storageClassName": None,
    "storage.accessModes": None,
    "storage.retain": None,
    "pod.labels": (),
    "pod.annotations": (),
    "pod.caBundle": None,
    "runPolicy.ttlSecondsAfterFinished": None,
}
"""What of a spec jobDefaults may say, and what is about the same in it: all of it (None), what a map has by one key
(()), entries of a list that are equal in these of their fields."""

MAX_BYTES = 16 * 1024
"""Of all sets that one job may get, as JSON: what they say goes into the ConfigMap of its run."""

Item = tuple[str, str]
"""One of FIELDS, and in it the key of a map or of a list's entries; empty where it is taken as a whole."""


class Default(NamedTuple):
    """What an item is, and the name of the set that says so."""

    value: Any
    origin: str


Defaults = Mapping[Item, Default]


class JobDefaults(Model):
    """One set. It is for the jobs that all of namespaces, kinds and selector fit; what is unset fits every job."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")]
    """What statuses and messages of jobs call it."""
    namespaces: Annotated[list[Name], Field(min_length=1)] | None = None
    """Namespaces of the jobs, by name."""
    kinds: Annotated[list[Kind], Field(min_length=1)] | None = None
    """Kinds of the jobs."""
    selector: LabelSelector | None = None
    """Labels of the jobs themselves."""
    spec: dict[str, JsonValue]
    """A part of a spec, of FIELDS only."""

    @field_validator("spec")
    @classmethod
    def _is_part_of_a_spec(cls, spec: Obj) -> Obj:
        sections = {field.split(".")[0] for field in FIELDS if "." in field}
        for name, value in spec.items():
            inside = isinstance(value, dict) and name in sections
            for field in [f"{name}.{each}" for each in value] if inside else [name]:
                if field not in FIELDS:
                    raise ValueError(f"{field} cannot be said here: remove it; jobDefaults have {', '.join(FIELDS)}")
        try:
            ClusterSpec.model_validate(_together({"storage": {"size": "1Gi"}}, spec))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None
        return spec

    def is_for(self, namespace: str, kind: Kind, labels: Mapping[str, str]) -> bool:
        """Return whether a job of this kind, with these labels, gets what the set says."""
        return (
            (self.namespaces is None or namespace in self.namespaces)
            and (self.kinds is None or kind in self.kinds)
            and (self.selector is None or _selects(self.selector, labels))
        )


def check(sets: Iterable[JobDefaults], backends: Set[str]) -> None:
    """Raise ValueError if sets have the same name or another backend than these, or if one job may get more than its
    ConfigMap has room for."""
    names: set[str] = set()
    everywhere, of = 0, dict[str, int]()
    for each in sets:
        if each.name in names:
            raise ValueError(f"two sets have the name {each.name}: choose another one for the second")
        names.add(each.name)
        if (backend := each.spec.get("backend")) not in {None, *backends}:
            raise ValueError(f"{each.name}: spec.backend: {backend} is not installed: name it in otherBackends")
        size = len(json.dumps(each.spec))
        everywhere += 0 if each.namespaces else size
        of |= {name: of.get(name, 0) + size for name in each.namespaces or ()}
    place, most = max(of.items(), key=lambda found: found[1], default=("any namespace", 0))
    if (total := everywhere + most) > MAX_BYTES:
        raise ValueError(f"jobs in {place} may get {total} bytes of them, at most {MAX_BYTES}: shorten or remove some")


def offered(sets: Iterable[JobDefaults], namespace: str, kind: Kind, labels: Mapping[str, str]) -> Defaults:
    """Return what the sets say for a job, whatever it says itself."""
    found: dict[Item, Default] = {}
    for each in sets:
        if each.is_for(namespace, kind, labels):
            found |= {item: Default(value, each.name) for item, value in items(each.spec).items()}
    return found


def unsaid(spec: Obj, defaults: Defaults) -> Defaults:
    """Return those defaults about which a spec, in its JSON form, says nothing. What claims are to be like says nothing
    to one that is there already."""
    said = items(spec)
    closed = {field for field in FIELDS if _at(spec, field) in ([], {})}
    if "size" not in spec.get("storage", {}):
        closed |= {field for field in FIELDS if field.startswith("storage.")}
    return {item: default for item, default in defaults.items() if item not in said and item[0] not in closed}


def filled(spec: Obj, defaults: Defaults) -> Obj:
    """Return a spec with defaults about which it says nothing."""
    found: Obj = _together(spec, part(defaults))
    return found


def part(defaults: Defaults) -> Obj:
    """Return the part of a spec that says this."""
    found: Obj = {}
    for (field, key), default in defaults.items():
        *sections, name = field.split(".")
        place, by = found, FIELDS[field]
        for section in sections:
            place = place.setdefault(section, {})
        if by is None:
            place[name] = default.value
        elif not by:
            place.setdefault(name, {})[key] = default.value
        else:
            place[name] = [*place.get(name, ()), *default.value]
    return found


def items(spec: Mapping[str, Any]) -> dict[Item, Any]:
    """Return what a spec says of FIELDS, of a list all entries that are about the same together."""
    found: dict[Item, Any] = {}
    for field, by in FIELDS.items():
        value = _at(spec, field)
        if value is None:
            continue
        if by is None:
            found[field, ""] = value
        elif not by:
            found |= {(field, key): each for key, each in value.items()}
        else:
            for entry in value:
                found.setdefault((field, "/".join(str(entry.get(name, "")) for name in by)), []).append(entry)
    return found


def place_of(item: Item) -> str:
    """Return an item as people read it, like env[HF_ENDPOINT]."""
    field, key = item
    return f"{field}[{key}]" if key else field


def _at(spec: Mapping[str, Any], field: str) -> Any:
    found: Any = spec
    for name in field.split("."):
        found = (found or {}).get(name)
    return found


def _together(said: Any, added: Any) -> Any:
    if isinstance(said, dict):
        return said | {name: _together(said[name], each) if name in said else each for name, each in added.items()}
    assert isinstance(said, list), "what a spec says as a whole gets nothing added"
    return [*said, *added]


def _selects(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    exact = (selector.match_labels or {}).items() <= labels.items()
    return exact and all(_holds(each, labels) for each in selector.match_expressions or ())


def _holds(requirement: LabelSelectorRequirement, labels: Mapping[str, str]) -> bool:
    """As Kubernetes has it: a label that is not there is not in any list."""
    if requirement.values is None:
        return (requirement.key in labels) == (requirement.operator == "Exists")
    return (labels.get(requirement.key) in requirement.values) == (requirement.operator == "In")
