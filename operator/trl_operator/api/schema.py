"""pydantic models become structural OpenAPI v3 schemas, the dialect of CustomResourceDefinitions."""

from typing import Any

from trl_contract.base import Model, cel

Schema = dict[str, Any]

INT32_MAX = 2**31 - 1
_DROPPED = ("title", "additionalProperties", "$ref", "anyOf", "const", "exclusiveMinimum", "exclusiveMaximum")


def structural_schema(model: type[Model]) -> Schema:
    """Return the structural schema of `model`: no references, no unions but int-or-string, no nulls, no titles.

    Unknown fields are not mentioned, so the API server prunes them and strict clients refuse them. Raises ValueError
    for what a structural schema cannot say.
    """
    root = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(root, root.get("$defs", {}))


def _convert(node: Schema, definitions: dict[str, Schema]) -> Schema:
    node = _inline(node, definitions)
    result = {key: value for key, value in node.items() if key not in _DROPPED and key != "$defs"}
    if "const" in node:
        result["enum"] = [node["const"]]
    for bound in ("minimum", "maximum"):
        exclusive = "exclusive" + bound.capitalize()
        if exclusive in node:
            result |= {bound: node[exclusive], exclusive: True}
    _convert_fractions(result)
    if result.get("type") == "integer" and "format" not in result:
        result["format"] = "int32"
        result["maximum"] = min(result.get("maximum", INT32_MAX), INT32_MAX)
    if "x-kubernetes-int-or-string" in result:
        result.pop("type", None)
    _convert_children(node, result, definitions)
    _convert_default(node, result)
    if "description" in result:
        result = {"description": " ".join(result["description"].split()), **_without(result, "description")}
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


def _convert_children(node: Schema, result: Schema, definitions: dict[str, Schema]) -> None:
    if "properties" in node:
        result["properties"] = {name: _convert(child, definitions) for name, child in node["properties"].items()}
    if "items" in node:
        result["items"] = _convert(node["items"], definitions)
    values = node.get("additionalProperties")
    if isinstance(values, dict):
        result["additionalProperties"] = _convert(values, definitions)


def _convert_default(node: Schema, result: Schema) -> None:
    """Defaults of sections are written out: the rules of a section see its default before those of its fields. What is
    resolved later has none here, and names it in its description."""
    if result.pop("x-resolved", False):
        if "description" in result:
            result["description"] += f" Default {_said(result.pop('default'))}."
    elif "properties" in result and "default" in node:
        fields = result["properties"]
        result["default"] = {name: fields[name]["default"] for name in fields if "default" in fields[name]}
    elif "default" in node:
        default = _without_nothing(node["default"])
        if default in (None, []):
            del result["default"]
        else:
            result["default"] = default


def _said(default: Any) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)


def _without_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nothing(item) for key, item in value.items() if item not in (None, [])}
    return value
