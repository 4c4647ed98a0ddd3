"""A page of docs/reference: what a kind's CRD says, as a tree that people can read."""

import json
import re
from typing import Any

from trl_operator.api.schema import Schema

HEAD = """\
# {kind}
{description}

`apiVersion: {group}/{version}`, `kind: {kind}`, for kubectl {names}. Made from the CRD by `make generate`;
`kubectl explain {singular}.spec.training` says the same of each field.

A field that the CRD does not know is refused. What begins with "must hold" is a rule between fields, in the words in
which a job that breaks it is refused. A default is filled in by the API server or, where something else than the job
may say it, with the first attempt: then `job.json` in the ConfigMap of the job's name and kind has it. After creation
only {editable} may be changed, and what says so itself. [status](#status) is the operator's;
[kubectl get](#kubectl-get) prints some of it.
"""


def page(crd: dict[str, Any], first: list[str]) -> str:
    """Return the page of a CRD, with the fields `first` of its spec before the others."""
    group, [version], names = crd["spec"]["group"], crd["spec"]["versions"], crd["spec"]["names"]
    schema = version["schema"]["openAPIV3Schema"]
    spec, status = schema["properties"]["spec"], schema["properties"]["status"]
    rules = schema["x-kubernetes-validations"] + spec["x-kubernetes-validations"]
    fixed = {_place(rule) for rule in rules if "oldSelf" in rule["rule"]}
    editable = [f"`{name}`" for name in spec["properties"] if name not in fixed]
    head = HEAD.format(
        kind=names["kind"],
        description=_escaped(schema["description"]),
        group=group,
        version=version["name"],
        names=" or ".join(f"`{name}`" for name in (names["plural"], *names.get("shortNames", []))),
        singular=names["singular"],
        editable=" and ".join(editable),
    )
    order = [*first, *(name for name in spec["properties"] if name not in first)]
    between = [rule for rule in rules if "oldSelf" not in rule["rule"]]
    parts = [
        head,
        *_rules([rule for rule in between if not _place(rule)], ""),
        "\n## spec\n",
        *_sections("spec", {name: spec["properties"][name] for name in order}, spec.get("required", []), between),
        "## status\n",
        *_sections("status", status["properties"], [], []),
        "## kubectl get\n",
        _columns(version["additionalPrinterColumns"]),
    ]
    return "\n".join(parts)


def _sections(root: str, fields: dict[str, Schema], required: list[str], between: list[Schema]) -> list[str]:
    seen: dict[str, str] = {}
    found = []
    for name, node in fields.items():
        rules = _rules([rule for rule in between if _place(rule) == name], "")
        below = [*rules, *_below(node, f"{root}.{name}", "", seen)]
        head = f"### {root}.{name}\n{_head(node, name in required)}\n"
        found.append("\n".join([head, *below, ""] if below else [head]))
    return found


def _below(node: Schema, path: str, indent: str, seen: dict[str, str]) -> list[str]:
    """Return the rules and fields below a field, or where they are told already."""
    holder = _holder(node)
    if not (fields := holder.get("properties", {})):
        return []
    rules = holder.get("x-kubernetes-validations", [])
    same = seen.setdefault(json.dumps([fields, rules]), path)
    if same != path and len(fields) > 1:
        return [f"{indent}- as in {same}"]
    lines = _rules(rules, indent)
    for name, child in fields.items():
        lines.append(f"{indent}- **{name}** {_head(child, name in holder.get('required', []))}")
        lines += _below(child, f"{path}.{name}", indent + "  ", seen)
    return lines


def _rules(rules: list[Schema], indent: str) -> list[str]:
    """Return what must hold between fields."""
    messages = dict.fromkeys(_escaped(rule["message"]) for rule in rules)
    return [f"{indent}- must hold: {message}" for message in messages]


def _holder(node: Schema) -> Schema:
    """Return the node that has the fields: that of the items of a list."""
    return _holder(node["items"]) if "items" in node else node


def _head(node: Schema, required: bool) -> str:
    said = f"({_type(node)}{', required' if required else ''})"
    return f"{said} {_escaped(node.get('description', '').removesuffix('Required.').strip())}".rstrip()


def _type(node: Schema, several: bool = False) -> str:
    if "items" in node:
        return f"list of {_type(node['items'], several=True)}"
    if "additionalProperties" in node:
        return f"map of {_type(node['additionalProperties'], several=True)}"
    kind = "quantity" if "x-kubernetes-int-or-string" in node else node["type"]
    kind = "time" if node.get("format") == "date-time" else kind
    return {"quantity": "quantities"}.get(kind, f"{kind}s") if several else kind


def _place(rule: Schema) -> str:
    """Return the field of the spec that a rule is about."""
    return str(rule.get("fieldPath", "")).removeprefix(".spec").removeprefix(".")


def _columns(columns: list[dict[str, Any]]) -> str:
    rows = [
        f"| {column['name']} | `{column['jsonPath']}` | {'with -o wide' if column.get('priority') else ''} |"
        for column in columns
    ]
    return "\n".join(["| column | field | |", "|---|---|---|", *rows]) + "\n"


def _escaped(text: str) -> str:
    """Return a text that Markdown shows as it is; what stands in backquotes is code."""
    parts = text.split("`")
    return "`".join(part if index % 2 else re.sub(r"([\\<*\[\]$])", r"\\\1", part) for index, part in enumerate(parts))
