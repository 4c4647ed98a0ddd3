"""What `kubectl explain` and docs/reference say of a field is what the API server and the trainer do."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from trl_contract.base import KINDS, Model
from trl_contract.jobfile import JobFile
from trl_contract.resolve import resolve
from trl_contract.spec import SPECS as TRAINED
from trl_operator.api import crd
from trl_operator.api.describe import of_spec, said, unit
from trl_operator.api.kinds import KINDS as INFOS
from trl_operator.api.reference import page
from trl_operator.api.schema import INT32_MAX, Schema, structural_schema

SPECS = {kind: structural_schema(info.spec, of_spec) for kind, info in INFOS.items()}


def fields(node: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every field below a node, those of a list's items too, with its path."""
    for name, child in node.get("properties", {}).items():
        yield f"{path}{name}", child
        yield from fields(child.get("items", child), f"{path}{name}.")


FIELDS = [(kind, path, node) for kind, spec in SPECS.items() for path, node in fields(spec)]


def bounds(node: Schema) -> list[float]:
    """The bounds of a field and of its items, those that are rules included, but for that of all integers."""
    found = [node[name] for name in node if re.fullmatch("(min|max)(imum|Length|Items|Properties)", name)]
    rules = [rule["rule"] for rule in node.get("x-kubernetes-validations", ()) if rule["rule"].startswith("self ")]
    found += [float(rule.split()[-1]) for rule in rules]
    return [bound for bound in found if bound != INT32_MAX]


def test_every_field_says_its_values_its_range_and_its_default() -> None:
    for kind, path, node in FIELDS:
        where, told = f"{kind}: {path}", node["description"]
        of_items = node.get("items", node.get("additionalProperties", {}))
        for value in [*node.get("enum", ()), *of_items.get("enum", ())]:
            assert said(value) in told, where
        quantity = "x-kubernetes-int-or-string" in node or "x-kubernetes-int-or-string" in of_items
        for bound in [] if quantity else [*bounds(node), *bounds(of_items)]:
            assert not bound or said(bound) in told, f"{where}: {bound}"
        assert not quantity or "quantity" in told, where
        if "properties" not in node and "properties" not in of_items:
            assert "default" not in node or f"Default: {said(node['default'])}." in told, where
            assert re.search(r"(?i)\b(default|unset|required)\b", told), where


def test_every_number_of_a_spec_says_what_it_counts() -> None:
    for kind, path, node in FIELDS:
        if node["type"] in ("integer", "number") if "type" in node else True:
            counted = unit(path.rpartition(".")[2])
            assert counted is not None, f"{kind}: {path} is not in describe.UNITS"
            assert counted.removeprefix("a ") in node["description"].lower(), f"{kind}: {path}"


class Bounded(Model):
    text: str
    """Words."""


def test_what_must_be_given_says_so() -> None:
    assert structural_schema(Bounded, of_spec)["properties"]["text"]["description"] == "Words. Required."


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, child in value.items():
            yield from leaves(child, f"{path}.{name}" if path else name)
    else:
        yield path, value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "none"])
@pytest.mark.parametrize("gpus", [True, False])
@pytest.mark.parametrize("scheduler", ["linear", "constant"])
def test_what_is_filled_in_later_is_what_the_field_says(kind: str, method: str, gpus: bool, scheduler: str) -> None:
    spec: dict[str, Any] = {
        "model": {"volume": {"claimName": "c", "path": "p"}},
        "dataset": {"train": {"volume": {"claimName": "c", "path": "p"}}},
        "peft": {"method": method},
        "training": {"lrScheduler": scheduler},
    }
    if kind == "GRPOJob":
        spec["grpo"] = {"rewards": [{"name": "short", "length": {"target": 3}}]}
    whose = {"kind": kind, "namespace": "n", "name": "j", "uid": "u", "paths": {"storage": "/s"}, "hasGpus": gpus}
    resolved = resolve(JobFile.model_validate({**whose, "spec": spec})).to_wire()["spec"]
    told, given = dict(fields(SPECS[kind])), dict(leaves(spec))  # type: ignore[index]
    filled = {path: value for path, value in leaves(resolved) if path not in given and value not in ([], None)}
    assert {"training.learningRate", "training.epochs", "checkpoint.everyMinutes"} <= filled.keys()
    words = dict(fields(structural_schema(INFOS[kind].spec)))  # type: ignore[index]
    for path, value in filled.items():
        value = "as training's" if path == "evaluation.perDeviceBatchSize" else said(value)
        if f"Default: {value}." not in told[path]["description"]:
            assert re.search(rf"(?<![\w.-]){re.escape(value)}(?![\w-])", words[path]["description"]), f"{path}: {value}"


def test_the_learning_rates_of_all_kinds_are_told_as_they_are() -> None:
    (sft, sft_lora), (reward, reward_lora), (dpo, dpo_lora), of_grpo = (
        [said(rate) for rate in TRAINED[kind].learning_rates] for kind in KINDS
    )
    assert of_grpo == [dpo, dpo_lora]
    assert (
        f"Default: with lora and qlora {sft_lora} (sft), {reward_lora} (reward) and {dpo_lora} (dpo, grpo); with"
        f" peft.method none {sft}, {reward} and {dpo}."
    ) in dict(fields(SPECS["SFTJob"]))["training.learningRate"]["description"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_has_every_field_every_rule_and_every_column(kind: str) -> None:
    made = crd.crd(INFOS[kind])  # type: ignore[index]
    text = page(made, first=["dataset"])
    assert text.index("### spec.dataset\n") < text.index("### spec.numNodes\n") < text.index("### status.phase\n")
    version = made["spec"]["versions"][0]
    root = version["schema"]["openAPIV3Schema"]
    plain = text.replace("\\", "").replace("`", "")
    for path, node in fields(root):
        if path.startswith(("spec.", "status.")):
            name = path if path.count(".") == 1 else path.rpartition(".")[2]
            assert f"### {name}\n" in text or f"**{name}** (" in text, path
        for rule in node.get("x-kubernetes-validations", ()):
            between = "oldSelf" not in rule["rule"] and not rule["rule"].startswith("self ")
            assert not between or f"must hold: {rule['message']}".replace("\\", "").replace("`", "") in plain, path
    assert "- must hold: metadata.name: at most 40 characters" in text
    for column in version["additionalPrinterColumns"]:
        assert f"| {column['name']} | `{column['jsonPath']}` |" in text
    assert "only `runPolicy` may be changed" in text


def test_a_page_is_plain_markdown() -> None:
    for info in INFOS.values():
        text = page(crd.crd(info), first=[])
        for part in re.split("`[^`]*`", text):
            assert not re.search(r"(?<!\\)<", part), "taken for HTML"


@pytest.mark.parametrize("kind", KINDS)
def test_a_crd_is_below_200_kilobytes(kind: str) -> None:
    """kubectl apply keeps it whole in an annotation, which may hold 256 KiB together with all others."""
    made = crd.crd(INFOS[kind])  # type: ignore[index]
    assert len(json.dumps(made, separators=(",", ":"), ensure_ascii=False)) < 200_000
