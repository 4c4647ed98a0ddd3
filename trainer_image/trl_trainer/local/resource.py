"""Reads the file that one would `kubectl apply`, and refuses in its training part what the API server would refuse."""

import base64
import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from trl_contract.base import KINDS, Kind, Model
from trl_contract.cluster import API_VERSION, CLUSTER_FIELDS, MAX_NAME_LENGTH, NAME_PATTERN, Cluster
from trl_contract.training import SPECS, TrainingSpec
from trl_trainer.errors import UserError

T = TypeVar("T", bound=Model)
MAX_ERRORS = 10


@dataclass(frozen=True)
class Resource:
    """The one job of a file, and the ConfigMaps beside it."""

    kind: Kind
    namespace: str
    name: str
    training: TrainingSpec
    cluster: Cluster
    """What means something without a cluster too; of all else that is the cluster's, only the names are checked."""
    config_maps: dict[str, dict[str, bytes]]
    """Content of each key, by the ConfigMap's name."""


def read(path: Path) -> Resource:
    """Return the job of a YAML (or JSON) file. UserError names the field, the value and the remedy."""
    documents = [document for document in _documents(path) if document is not None]
    for document in documents:
        if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
            raise UserError("InvalidSpec", f"{path}: every document needs a kind")
    jobs = [document for document in documents if document["kind"] in KINDS]
    if len(jobs) != 1:
        found = ", ".join(document["kind"] for document in documents) or "nothing"
        raise UserError("InvalidSpec", f"{path}: needs exactly one job ({', '.join(KINDS)}); it has {found}")
    maps = [document for document in documents if document["kind"] == "ConfigMap"]
    return _resource(jobs[0], {_name(document): _data(document) for document in maps})


def _documents(path: Path) -> Iterator[Any]:
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
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def _name(document: dict[str, Any]) -> str:
    name = (document.get("metadata") or {}).get("name")
    if not isinstance(name, str):
        raise UserError("InvalidSpec", f"{document['kind']}: metadata.name is missing")
    return name


def _data(config_map: dict[str, Any]) -> dict[str, bytes]:
    text = {key: str(value).encode() for key, value in (config_map.get("data") or {}).items()}
    binary = {key: base64.b64decode(value) for key, value in (config_map.get("binaryData") or {}).items()}
    return text | binary


def _resource(document: dict[str, Any], config_maps: dict[str, dict[str, bytes]]) -> Resource:
    kind, name, spec = document["kind"], _name(document), document.get("spec")
    if document.get("apiVersion") != API_VERSION:
        raise UserError(
            "InvalidSpec", f"{kind}: apiVersion is {document.get('apiVersion')!r}; it must be {API_VERSION}"
        )
    if len(name) > MAX_NAME_LENGTH or not re.fullmatch(NAME_PATTERN, name):
        raise UserError(
            "InvalidSpec",
            f"metadata.name: {name!r} must be at most {MAX_NAME_LENGTH} characters, lower-case letters, digits and -,"
            " start with a letter and end with a letter or digit",
        )
    unknown = sorted(document.keys() - {"apiVersion", "kind", "metadata", "spec", "status"})
    if unknown or not isinstance(spec, dict):
        raise UserError("InvalidSpec", f"{kind} {name}: {'unknown field ' + unknown[0] if unknown else 'has no spec'}")
    return Resource(
        kind=kind,
        namespace=(document["metadata"]).get("namespace", "default"),
        name=name,
        training=_checked(SPECS[kind], {key: value for key, value in spec.items() if key not in CLUSTER_FIELDS}, kind),
        cluster=_checked(Cluster, {key: value for key, value in spec.items() if key in CLUSTER_FIELDS}, kind),
        config_maps=config_maps,
    )


def _checked(model: type[T], spec: dict[str, Any], kind: Kind) -> T:
    try:
        # As JSON and strict: the API server takes no "4" for a number either.
        return model.model_validate_json(json.dumps(spec), strict=True)
    except ValidationError as error:
        lines = [_explain(kind, found) for found in error.errors(include_url=False)]
        more = [f"and {len(lines) - MAX_ERRORS} more"] if len(lines) > MAX_ERRORS else []
        raise UserError("InvalidSpec", "\n".join([*lines[:MAX_ERRORS], *more])) from None
    except (TypeError, ValueError) as error:
        raise UserError("InvalidSpec", f"spec: {error}") from None


def _explain(kind: Kind, error: Any) -> str:
    where = ".".join(["spec", *(str(part) for part in error["loc"])])
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(error["loc"][-1]), _field_names(), 1)
        return f"{where}: {kind} has no such field" + (f"; did you mean {close[0]}?" if close else "")
    if error["type"] == "missing":
        return f"{where}: is missing"
    value = json.dumps(error["input"], default=str)
    return f"{where}: {error['msg'].removeprefix('Value error, ')}; got {value[:80]}"


def _field_names() -> set[str]:
    """Return the names of all fields of all kinds."""
    found: set[str] = set(CLUSTER_FIELDS)
    classes = list(Model.__subclasses__())
    while classes:
        model = classes.pop()
        classes += model.__subclasses__()
        if model.__module__.startswith("trl_contract."):
            found |= {field.alias or name for name, field in model.model_fields.items()}
    return found
