"""What is wrong with a spec, in words: the field, its value, and what to write instead."""

import difflib
import json
import re
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

import yaml

from trl_contract.base import KINDS, Broken, Kind
from trl_contract.jobs import JOB_SPECS

Path = tuple[str | int, ...]
Schema = dict[str, Any]

ELSEWHERE = {
    "num_train_epochs": "training.epochs",
    "per_device_train_batch_size": "training.perDeviceBatchSize",
    "per_device_eval_batch_size": "evaluation.perDeviceBatchSize",
    "lr": "training.learningRate",
    "lr_scheduler_type": "training.lrScheduler",
    "optim": "training.optimizer",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "eval_steps": "evaluation.everySteps",
    "save_steps": "checkpoint.everySteps",
    "save_total_limit": "checkpoint.keep",
    "lora_r": "peft.r",
    "lora_alpha": "peft.alpha",
    "lora_dropout": "peft.dropout",
    "lora_target_modules": "peft.targetModules",
    "load_in_4bit": "peft.method",
    "use_peft": "peft.method",
    "report_to": "tracking",
    "model_name_or_path": "model.hub.repo",
    "dataset_name": "dataset.train.hub.repo",
    "backoff_limit": "runPolicy.maxRestarts",
    "replicas": "numNodes",
    "nproc_per_node": "numProcPerNode",
    "gpus": "resources.limits",
}
"""Fields by the names that TRL, transformers, peft and Kubernetes' Jobs have for them."""


@cache
def schema(kind: Kind) -> Schema:
    """Return the schema of a kind's spec, with references."""
    return JOB_SPECS[kind].model_json_schema()


def options(field: Schema, definitions: Schema) -> list[Schema]:
    """Return all that `field` lets a value be."""
    found = [field, *field.get("anyOf", [])]
    return found + [definitions[option["$ref"].removeprefix("#/$defs/")] for option in found if "$ref" in option]


def explain(kind: Kind, error: Any) -> list[str]:
    """Return the lines that say what pydantic has found wrong with a spec."""
    where, broken = _place(error["loc"]), error.get("ctx", {}).get("error")
    if isinstance(broken, Broken):
        return [f"{where}.{rule.field}: {rule.message}" if rule.field else f"{where}: {rule.message}"
                for rule in broken.rules]  # fmt: skip
    if error["type"] == "extra_forbidden":
        return [f"{where}: {kind} has no such field{_hint(kind, error['loc'])}"]
    if error["type"] == "missing":
        return [f"{where}: is missing"]
    if not error["loc"]:
        # What is wrong between sections begins with the field.
        return [f"{where}.{error['msg'].removeprefix('Value error, ')}"]
    value = json.dumps(error["input"], default=str, ensure_ascii=False)
    said = _remedy(kind, error) or error["msg"].removeprefix("Value error, ")
    return [f"{where}: {said}; got {value[:80]}"]


def close_to(name: str, names: Collection[str]) -> str:
    """Return words that ask for the one of `names` that may be meant; empty if none is like `name`."""
    by_form = {_plain(each): each for each in names}
    found = difflib.get_close_matches(_plain(name), by_form, 1, 0.7)
    return f"; did you mean {by_form[found[0]]}?" if found else ""


def _place(path: Path) -> str:
    return "spec" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def _plain(name: str) -> str:
    return re.sub("[-_]", "", name).lower()


def _at(kind: Kind, path: Path) -> list[Schema]:
    """Return all that the field of this path may be; nothing if the kind has none."""
    definitions = schema(kind)["$defs"]
    found = options(schema(kind), definitions)
    for part in path:
        inner = [_inside(option, part) for option in found]
        field = next((each for each in inner if each is not None), None)
        found = [] if field is None else options(field, definitions)
    return found


def _inside(option: Schema, part: str | int) -> Schema | None:
    each: Schema | None = option.get("items") if isinstance(part, int) else option.get("properties", {}).get(part)
    return each


def _hint(kind: Kind, path: Path) -> str:
    """Return what may be meant by a field that the kind does not have: another kind's, the same name spelt otherwise,
    here or in one or two other places, what has another name here, or a name that is like it."""
    name = _plain(str(path[-1]))
    if kinds := [other for other in KINDS if _at(other, path)]:
        return f"; of {', '.join(kinds)} only"
    beside = {_plain(field): field for option in _at(kind, path[:-1]) for field in option.get("properties", {})}
    if name in beside:
        return f"; did you mean {beside[name]}?"
    known = {_plain(theirs): tuple(ours.split(".")) for theirs, ours in ELSEWHERE.items()}
    if name in known and _at(kind, known[name]):
        return f"; did you mean {_place(known[name])}?"
    places: dict[str, list[str]] = {}
    for field in _fields(kind):
        places.setdefault(_plain(str(field[-1])), []).append(_place(field))
    if 1 <= len(found := places.get(name, [])) <= 2:
        return f"; did you mean {' or '.join(found)}?"
    if near := close_to(name, beside.values()):
        return near
    close = next(iter(difflib.get_close_matches(name, places, 1, 0.85)), "")
    found = places.get(close, [])
    return f"; did you mean {' or '.join(found)}?" if 1 <= len(found) <= 2 else ""


@cache
def _fields(kind: Kind) -> tuple[Path, ...]:
    """Return the paths of all fields of a kind that are not inside of lists."""

    def below(path: Path) -> Iterator[Path]:
        for name in {name for option in _at(kind, path) for name in option.get("properties", {})}:
            yield (*path, name)
            yield from below((*path, name))

    return tuple(sorted(below(())))


def _remedy(kind: Kind, error: Any) -> str:
    """Return what to write in place of a value of the wrong form; empty if pydantic's words must do."""
    value, allowed, form = error["input"], _at(kind, error["loc"]), str(error["type"])
    if value is None:
        return ""
    if form == "list_type":
        items: Schema = next((option["items"] for option in allowed if "items" in option), {})
        return f"takes a list: write {_yaml(_listed(value, items, schema(kind)['$defs']))}"
    if form in ("model_type", "model_attributes_type", "dict_type"):
        return f"takes an object: {_object(value, allowed, schema(kind)['$defs'])}"
    if form == "string_type" and isinstance(value, int | float):
        return f"takes text: write {json.dumps(str(value) if not isinstance(value, bool) else str(value).lower())}"
    if form in ("int_type", "float_type") and isinstance(value, str) and re.fullmatch(r"-?[0-9.]+(e-?\d+)?", value):
        return f"takes a number: write {value}, without quotes"
    if form == "bool_type":
        meant = {"true": "true", "yes": "true", "on": "true", "1": "true", "false": "false", "no": "false"}
        return f"takes true or false: write {meant.get(str(value).lower(), 'one of them')}, without quotes"
    if form == "literal_error" and isinstance(value, str):
        return error["msg"] + close_to(value, re.findall(r"'([^']*)'", error["ctx"]["expected"])).rstrip("?")
    return ""


def _listed(value: Any, items: Schema, definitions: Schema) -> list[Any]:
    """Return the list that is meant by another value: one item, names with commas between, or names and values."""
    if isinstance(value, str) and (items.get("maxLength", 10_000) <= 256 or "enum" in items):
        return [part.strip() for part in value.split(",")]
    fields = {name for option in options(items, definitions) for name in option.get("properties", {})}
    if isinstance(value, dict) and {"name", "value"} <= fields and not fields & value.keys():
        return [{"name": name, "value": str(each)} for name, each in value.items()]
    return [value]


def _object(value: Any, allowed: list[Schema], definitions: Schema) -> str:
    """Return what to write where an object is due and another value stands."""
    fields = {name: field for option in allowed for name, field in option.get("properties", {}).items()}
    required = [name for option in allowed for name in option.get("required", ())]
    if not fields:
        return "write names and values, like {name: value}"
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        if len(required) == 1:
            return f"write {_yaml({required[0]: value})}"
        hub = next((each for each in options(fields.get("hub", {}), definitions) if "properties" in each), None)
        if hub is not None and not required:
            return f"write {_yaml({'hub': {hub['required'][0]: value}})}"
    if required:
        return f"give it {' and '.join(required)}"
    return f"give it fields, such as {', '.join(list(fields)[:6])}"


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)).strip()[:200]
