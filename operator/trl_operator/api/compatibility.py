"""What a newer CRD would break of an older one: docs/compatibility.md has the policy, a test holds it."""

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from trl_operator.api.schema import Schema

_LEAST = ("minimum", "minLength", "minItems", "minProperties")
_MOST = ("maximum", "maxLength", "maxItems", "maxProperties")
_FORM = (
    "type", "format", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
)  # fmt: skip
"""What a stored value is, and how it is merged."""


_TOLD = r"Default: (\S+|\[.*\])\.$"


def essence(node: Any) -> Any:
    """Return a CRD without the words that `breaks` does not look at, to be kept."""
    if isinstance(node, list):
        return [essence(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {name: essence(value) for name, value in node.items()}
    if isinstance(words := node.get("description"), str):
        del kept["description"]
        if told := re.search(_TOLD, words):
            kept["description"] = told[0]
    return kept


def breaks(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return what breaks for objects, manifests and scripts that are made for the CRD `old` when `new` takes its place:
    each with the field first, then what was and what is.

    What only adds (a field, a value, room) breaks nothing. A rule that is new on an old field is taken for a break
    unless it begins with the condition that a new field is given.
    """
    before, after = old["spec"], new["spec"]
    found = [*_names(before, after)]
    versions = {version["name"]: version for version in after["versions"] if version["served"]}
    for version in before["versions"]:
        name = version["name"]
        if name not in versions:
            found.append(f"version {name}: no longer served")
            continue
        found += _columns(version["additionalPrinterColumns"], versions[name]["additionalPrinterColumns"])
        schemas = [each["schema"]["openAPIV3Schema"] for each in (version, versions[name])]
        found += _changes("", *schemas)
    return found


def _names(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name in ("group", "scope"):
        if old[name] != new[name]:
            yield f"{name}: was {old[name]}, is {new[name]}"
    for name in ("kind", "plural", "singular"):
        if old["names"][name] != new["names"][name]:
            yield f"names.{name}: was {old['names'][name]}, is {new['names'][name]}"
    for name in ("shortNames", "categories"):
        for gone in set(old["names"].get(name, ())) - set(new["names"].get(name, ())):
            yield f"names.{name}: {gone} is removed"


def _columns(old: list[Schema], new: list[Schema]) -> Iterator[str]:
    columns = {column["name"]: column for column in new}
    for column in old:
        name = column["name"]
        if name not in columns:
            yield f"column {name}: removed"
        elif columns[name].get("priority", 0) > column.get("priority", 0):
            yield f"column {name}: now with -o wide only"


def _changes(path: str, old: Schema, new: Schema) -> Iterator[str]:
    where = path or "the object"
    for key in _FORM:
        if old.get(key) != new.get(key):
            yield f"{where}: {key} was {_said(old, key)}, is {_said(new, key)}"
    yield from (f"{where}: {change}" for change in chain(_values(old, new), _rules(old, new)))
    fields, known = old.get("properties", {}), new.get("properties", {})
    for name in fields.keys() - known.keys():
        yield f"{path}.{name}".lstrip(".") + ": removed"
    for name in set(new.get("required", ())) - set(old.get("required", ())):
        if "default" not in known[name]:
            yield f"{path}.{name}".lstrip(".") + ": now required"
    for name in fields.keys() & known.keys():
        yield from _changes(f"{path}.{name}".lstrip("."), fields[name], known[name])
    for part in ("items", "additionalProperties"):
        if part in old and part in new:
            yield from _changes(f"{path}[]", old[part], new[part])
        elif part in old or part in new:
            yield f"{where}: {part} {'is removed' if part in old else 'is new'}"


def _values(old: Schema, new: Schema) -> Iterator[str]:
    """Say which values are refused now, and what an absent one becomes."""
    for keys, sign in ((_LEAST, 1), (_MOST, -1)):
        for key in keys:
            if key in new and (key not in old or sign * new[key] > sign * old[key]):
                yield f"{key} was {_said(old, key)}, is {new[key]}"
    for key in ("exclusiveMinimum", "exclusiveMaximum"):
        bound = key.removeprefix("exclusive").lower()
        if new.get(key) and not old.get(key) and new[bound] == old.get(bound):
            yield f"{bound} {new[bound]} itself is refused"
    if "pattern" in new and new["pattern"] != old.get("pattern"):
        yield f"pattern was {_said(old, 'pattern')}, is {new['pattern']}"
    if "enum" in new and "enum" not in old:
        yield f"only {new['enum']} are taken"
    for value in old.get("enum", ()):
        if value not in new.get("enum", [value]):
            yield f"value {value} is refused"
    # The default of a section is made of those of its fields, which are looked at one by one.
    if "properties" not in old and (was := _default(old)) != (now := _default(new)):
        yield f"default was {was}, is {now}"


def _said(node: Schema, key: str) -> Any:
    return node.get(key, "none")


def _default(node: Schema) -> str:
    """Return the default of a field: the schema's, or the one that its description ends with, which is resolved later
    (describe.of_spec)."""
    told = re.search(_TOLD, node.get("description", ""))
    return told[1] if told and "default" not in node else str(_said(node, "default"))


def _rules(old: Schema, new: Schema) -> Iterator[str]:
    known = {rule["rule"] for rule in old.get("x-kubernetes-validations", ())}
    for rule in new.get("x-kubernetes-validations", ()):
        if rule["rule"] not in known and not _is_of_new_fields(rule["rule"], old, new):
            yield f"new rule: {rule['message']}"


def _is_of_new_fields(rule: str, old: Schema, new: Schema) -> bool:
    """Return whether a rule holds of whatever has none of the new fields."""
    if guard := re.match(r"!has\(self\.([\w.]+)\) \|\|", rule):
        return _field(old, guard[1]) is None
    if guard := re.match(r"!self\.([\w.]+) \|\|", rule):
        return _field(old, guard[1]) is None and (_field(new, guard[1]) or {}).get("default") is False
    # Between two states of an object, what neither has is the same.
    named = re.findall(r"\b(?:s|oldS)elf\.(\w+)", rule)
    return "oldSelf." in rule and all(_field(old, name) is None for name in named)


def _field(node: Schema, path: str) -> Schema | None:
    found: Schema | None = node
    for name in path.split("."):
        found = (found or {}).get("properties", {}).get(name)
    return found
