"""Reads the files that one would `kubectl apply`, and refuses what the API server or the operator would refuse."""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trl_contract import acceptance, profiles
from trl_contract.base import KINDS, Kind
from trl_contract.cluster import ClusterSpec
from trl_contract.jobs import API_VERSION, JOB_SPECS, NAME_RULE, JobSpec, suggested_name
from trl_contract.spec import SPECS, TrainingSpec
from trl_trainer.errors import UserError
from trl_trainer.local import messages

METADATA = {
    "name", "namespace", "labels", "annotations", "generateName", "finalizers", "ownerReferences", "uid",
    "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
    "managedFields", "selfLink",
}  # fmt: skip
"""The fields that Kubernetes knows."""
LABEL = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"
QUALIFIED = r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
"""A label's value, and the name of a label or an annotation."""


Key = tuple[Kind, str, str]
"""Kind, namespace and name of a job."""
SUFFIXES = (".json", ".yaml", ".yml")
"""What kubectl takes of a folder."""


@dataclass(frozen=True)
class Resource:
    """A job, and the ConfigMaps beside it."""

    kind: Kind
    namespace: str
    name: str
    training: TrainingSpec
    cluster: ClusterSpec
    origins: dict[str, str]
    """Of each field that has its value from elsewhere than the user or our defaults: where from."""
    config_maps: dict[str, dict[str, bytes]]
    """Content of each key, by the ConfigMap's name."""

    @property
    def key(self) -> Key:
        return self.kind, self.namespace, self.name


def read(path: Path) -> Resource:
    """Return the job of a YAML (or JSON) file. UserError has a line for each field that is wrong: its value and the
    remedy."""
    found = read_all(path)
    if len(found) != 1:
        names = ", ".join(f"{each.kind} {each.name}" for each in found)
        raise UserError("InvalidSpec", f"{path}: needs exactly one job; it has {names}: `run` takes several")
    return found[0]


def read_all(path: Path) -> list[Resource]:
    """Return the jobs of a YAML (or JSON) file, or of all of them in a folder, in order of name, each with all
    ConfigMaps. UserError has a line for each field that is wrong."""
    files = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES) if path.is_dir() else [path]
    documents = {file: list(_documents(file)) for file in files}
    given = [document for each in documents.values() for document in each]
    maps = {_name(document): _data(document) for document in given if document["kind"] == "ConfigMap"}
    jobs, wrong = {}, []
    for file, each in documents.items():
        for document in (document for document in each if document["kind"] in KINDS):
            try:
                job = _resource(document, maps)
            except UserError as error:
                where = f"{file.name}: " if path.is_dir() else ""
                wrong += [f"{where}{line}" for line in error.message.splitlines()]
                continue
            if job.key in jobs:
                wrong.append(f"{file.name}: {job.kind} {job.name} is there twice: give one of them another name")
            jobs[job.key] = job
    if wrong:
        raise UserError("InvalidSpec", "\n".join(wrong))
    if not jobs:
        found = ", ".join(document["kind"] for document in given) or "nothing"
        raise UserError("InvalidSpec", f"{path}: needs a job ({', '.join(KINDS)}); it has {found}")
    return list(jobs.values())


def _documents(path: Path) -> Iterator[Any]:
    for document in _parse(path):
        if document is None:
            continue
        if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
            raise UserError("InvalidSpec", f"{path}: every document needs a kind")
        yield document


def _parse(path: Path) -> Iterator[Any]:
    try:
        yield from yaml.load_all(path.read_text(), Loader=_Loader)
    except FileNotFoundError:
        raise UserError("InvalidSpec", f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("InvalidSpec", f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError("InvalidSpec", f"{path}: is not YAML: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    """YAML as kubectl reads it: PyYAML alone takes 1e-6 for text, 2026-01-31 for a date and 1:30 for a number, and
    lets the last of two equal keys win."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag.rsplit(":", 1)[1] not in ("timestamp", "float", "int")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        found = super().construct_mapping(node, deep)
        return {key if isinstance(key, str) else json.dumps(key): value for key, value in found.items()}


def _number(loader: yaml.SafeLoader, node: Any) -> int | float:
    """kubectl sends 1.0 and 1e3 as 1 and 1000."""
    value = loader.construct_yaml_float(node)
    return int(value) if value.is_integer() and abs(value) < 1e21 else value


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(0|[1-9][0-9_]*|0b[01_]+|0[0-7_]+|0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def _name(document: dict[str, Any]) -> str:
    metadata = document.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise UserError("InvalidSpec", f"{document['kind']}: metadata is {metadata!r}; it must be an object")
    name = metadata.get("name")
    if not isinstance(name, str):
        raise UserError("InvalidSpec", f"{document['kind']}: metadata.name is missing")
    return name


def _data(config_map: dict[str, Any]) -> dict[str, bytes]:
    text, binary = _texts(config_map, "data"), _texts(config_map, "binaryData")
    found = {key: value.encode() for key, value in text.items()}
    for key, value in binary.items():
        try:
            found[key] = base64.b64decode("".join(value.split()), validate=True)
        except ValueError:
            where = f"ConfigMap {_name(config_map)}: binaryData.{key}"
            raise UserError("InvalidSpec", f"{where} is not base64: encode it, or put text into data") from None
    return found


def _texts(config_map: dict[str, Any], field: str) -> dict[str, str]:
    """Return a field of keys and texts; null is an empty one, as for the API server."""
    given, where = config_map.get(field) or {}, f"ConfigMap {_name(config_map)}: {field}"
    if not isinstance(given, dict):
        raise UserError("InvalidSpec", f"{where} is {str(given)[:40]}; it must be an object of keys and texts")
    for key, value in given.items():
        if not isinstance(value, str | None):
            raise UserError("InvalidSpec", f"{where}.{key} is {str(value)[:40]}; it must be text: quote it")
    return {key: value or "" for key, value in given.items()}


def _resource(document: dict[str, Any], config_maps: dict[str, dict[str, bytes]]) -> Resource:
    kind, metadata, given = document["kind"], document.get("metadata") or {}, document.get("spec")
    wrong = [*_wrong_frame(document), *_wrong_metadata(metadata)]
    spec: JobSpec | None = None
    by_profile: list[str] = []
    if isinstance(given, dict):
        schema = messages.schema(kind)
        given, by_profile = profiles.fill(kind, _without_nulls(given, schema, schema["$defs"]))
        spec, found = _parsed(kind, given)
        wrong += found
    if wrong or spec is None:
        raise UserError("InvalidSpec", "\n".join(wrong))
    training = SPECS[kind].model_validate({name: getattr(spec, name) for name in SPECS[kind].model_fields})
    if refused := acceptance.refused(training):
        raise UserError("InvalidSpec", refused[1])
    origins = dict.fromkeys(by_profile, f"profile {spec.profile}")
    return Resource(kind, metadata.get("namespace", "default"), metadata["name"], training, spec, origins, config_maps)


def _wrong_frame(document: dict[str, Any]) -> list[str]:
    """Return what is wrong around metadata and spec, a line for each."""
    kind, version = document["kind"], document.get("apiVersion")
    wrong = [] if version == API_VERSION else [f"{kind}: apiVersion is {version!r}; it must be {API_VERSION}"]
    frame = {"apiVersion", "kind", "metadata", "spec", "status"}
    unknown = sorted(document.keys() - frame)
    wrong += [f"{kind}: unknown field {name}{messages.close_to(name, frame)}" for name in unknown]
    return wrong + ([] if isinstance(document.get("spec"), dict) else [f"{kind}: has no spec"])


def _wrong_metadata(metadata: Any) -> list[str]:
    """Return what the API server refuses of metadata, a line for each."""
    if not isinstance(metadata, dict):
        return ["metadata: must be an object"]
    name, namespace = metadata.get("name"), metadata.get("namespace", "default")
    unknown = sorted(metadata.keys() - METADATA)
    wrong = [f"metadata.{field}: there is no such field{messages.close_to(field, METADATA)}" for field in unknown]
    if not isinstance(name, str):
        wrong.append("metadata.name: is missing" if name is None else f"metadata.name: {name!r} is not text")
    elif not NAME_RULE.holds(name):
        wrong.append(f"{NAME_RULE.message}{suggested_name(name)}; got {name!r}")
    if not isinstance(namespace, str) or not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", namespace):
        wrong.append(f"metadata.namespace: {namespace!r} is no name of a namespace")
    for field, form in (("labels", LABEL), ("annotations", ".*")):
        given = metadata.get(field) or {}
        if not isinstance(given, dict):
            wrong.append(f"metadata.{field}: {given!r} must be an object of names and texts")
            continue
        for key, value in given.items():
            if not re.fullmatch(QUALIFIED, str(key)):
                wrong.append(f"metadata.{field}: {key!r} is no name of Kubernetes, like app or example.com/app")
            if value is not None and not (isinstance(value, str) and re.fullmatch(form, value, re.DOTALL)):
                wrong.append(f"metadata.{field}.{key}: {value!r} must be text{' of a label' * (field == 'labels')}")
    return wrong


def _parsed(kind: Kind, spec: dict[str, Any]) -> tuple[JobSpec | None, list[str]]:
    """Return the typed spec, or what is wrong with it: a line for each field."""
    try:
        # As JSON and strict: the API server takes no "4" for a number either, and no other spelling of a name.
        given = json.dumps(spec)
        return JOB_SPECS[kind].model_validate_json(given, strict=True, by_alias=True, by_name=False), []
    except ValidationError as error:
        return None, [line for found in error.errors(include_url=False) for line in messages.explain(kind, found)]
    except (TypeError, ValueError) as error:
        return None, [f"spec: {error}"]


def _without_nulls(value: Any, schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """Return `value` as the API server takes it: a known field that is null is one that is not given."""
    options = messages.options(schema, definitions)
    if isinstance(value, list):
        items: dict[str, Any] = next((option["items"] for option in options if "items" in option), {})
        return [_without_nulls(item, items, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    fields = {name: field for option in options for name, field in option.get("properties", {}).items()}
    each = next((more for option in options if isinstance(more := option.get("additionalProperties"), dict)), None)
    taken = {}
    for name, item in value.items():
        field = fields.get(name, each)
        if field is None:
            taken[name] = item
        elif item is not None:
            taken[name] = _without_nulls(item, field, definitions)
    return taken
