"""pydantic models become structural OpenAPI v3 schemas, the dialect of CustomResourceDefinitions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trl_contract.base import Model, cel

Schema = dict[str, Any]
Tell = Callable[[str, Schema, bool, Any], str]
"""The description of a field: of its name, its schema with the model's own bounds, whether it must be given, and a
default that is none of the schema's."""

INT32_MAX = 2**31 - 1
_DROPPED = ("title", "additionalProperties", "$ref", "anyOf", "const", "exclusiveMinimum", "exclusiveMaximum")


def _as_it_is(name: str, node: Schema, required: bool, resolved: Any) -> str:
    return str(node["description"])


def structural_schema(model: type[Model], tell: Tell = _as_it_is) -> Schema:
    """Return the structural schema of `model`: no references, no unions but int-or-string, no nulls, no titles. `tell`
    gives each field that has a description another one.

    Unknown fields are not mentioned, so the API server prunes them and strict clients refuse them. Raises ValueError
    for what a structural schema cannot say.
    """
    root = model.model_json_schema(by_alias=True, mode="validation")
    return _convert("", root, False, _Conversion(root.get("$defs", {}), tell))


@dataclass(frozen=True)
class _Conversion:
    definitions: dict[str, Schema]
    tell: Tell


def _convert(name: str, node: Schema, required: bool, conversion: _Conversion) -> Schema:
    node = _inline(node, conversion.definitions)
    result = {key: value for key, value in node.items() if key not in _DROPPED and key != "$defs"}
    if "const" in node:
        result["enum"] = [node["const"]]
    for bound in ("minimum", "maximum"):
        exclusive = "exclusive" + bound.capitalize()
        if exclusive in node:
            result |= {bound: node[exclusive], exclusive: True}
    bounds = {key: value for key, value in result.items() if "inimum" in key or "aximum" in key}
    _convert_fractions(result)
    if result.get("type") == "integer" and "format" not in result:
        result["format"] = "int32"
        result["maximum"] = min(result.get("maximum", INT32_MAX), INT32_MAX)
    if "x-kubernetes-int-or-string" in result:
        result.pop("type", None)
    _convert_children(node, result, conversion)
    later = _convert_default(node, result)
    if "description" in result:
        words = " ".join(result.pop("description").split())
        told = conversion.tell(name, {**result, **bounds, "description": words}, required, later)
        result = {"description": told, **result}
    return result


def _convert_fractions(result: Schema) -> None:
    """A bound like 0.5 becomes a rule: the API server compares an integer with the bound cut to one, and would refuse
    the 0 that is below 0.5."""
    for bound, words, sign in (("minimum", "greater than", ">"), ("maximum", "less than", "<")):
        limit = result.get(bound)
        if isinstance(limit, float) and not limit.is_integer():
            del result[bound]
            words, sign = (
                (words, sign)
                if result.pop(f"exclusive{bound.capitalize()}", False)
                else (f"{words} or equal to", f"{sign}=")
            )
            rules = result.setdefault("x-kubernetes-validations", [])
            rules.append(cel(f"self {sign} {limit}", f"should be {words} {limit}"))


def _without(node: Schema, name: str) -> Schema:
    return {key: value for key, value in node.items() if key != name}


def _inline(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """Resolve `$ref` and `anyOf` with null; the words beside a reference win over those of its target."""
    if "anyOf" in node and "x-kubernetes-int-or-string" not in node:
        options = [option for option in node["anyOf"] if option.get("type") != "null"]
        if len(options) != 1:
            raise ValueError(f"a structural schema has no unions: {node}")
        beside = _without(node, "anyOf")
        if beside.get("default", ...) is None:
            del beside["default"]
        return _inline({**options[0], **beside}, definitions)
    if "$ref" in node:
        target = definitions[node["$ref"].removeprefix("#/$defs/")]
        return _inline({**target, **_without(node, "$ref")}, definitions)
    if node.keys() & {"oneOf", "allOf", "prefixItems", "discriminator"}:
        raise ValueError(f"a structural schema cannot say this: {node}")
    return node


def _convert_children(node: Schema, result: Schema, conversion: _Conversion) -> None:
    if "properties" in node:
        result["properties"] = {
            name: _convert(name, child, name in node.get("required", []), conversion)
            for name, child in node["properties"].items()
        }
    if "items" in node:
        result["items"] = _convert("", node["items"], False, conversion)
    values = node.get("additionalProperties")
    if isinstance(values, dict):
        result["additionalProperties"] = _convert("", values, False, conversion)


def _convert_default(node: Schema, result: Schema) -> Any:
    """Defaults of sections are written out: the rules of a section see its default before those of its fields. What is
    resolved later has none here, and is returned."""
    if result.pop("x-resolved", False):
        return result.pop("default")
    if "properties" in result and "default" in node:
        fields = result["properties"]
        result["default"] = {name: fields[name]["default"] for name in fields if "default" in fields[name]}
    elif "default" in node:
        default = _without_nothing(node["default"])
        if default in (None, []):
            del result["default"]
        else:
            result["default"] = default
    return None


def _without_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nothing(item) for key, item in value.items() if item not in (None, [])}
    return value
