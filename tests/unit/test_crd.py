"""The generated CRDs keep Kubernetes' conventions, and say what the models say."""

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import Field

from trl_contract.base import KINDS, Model
from trl_contract.cluster import ClusterSpec
from trl_contract.spec import SPECS
from trl_operator.api import crd
from trl_operator.api.kinds import KINDS as INFOS
from trl_operator.api.schema import structural_schema

Schema = dict[str, Any]


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every node of a schema with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for part in ("items", "additionalProperties"):
        if part in schema:
            yield from nodes(schema[part], f"{path}[]")


def schema(kind: str) -> Schema:
    found: Schema = crd.crd(INFOS[kind])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]  # type: ignore[index]
    return found


ALL = [(kind, path, node) for kind in KINDS for path, node in nodes(schema(kind))]


def test_the_committed_files_are_up_to_date() -> None:
    assert crd.main(["--check"]) == 0


def test_every_node_is_structural_and_bounded() -> None:
    for kind, path, node in ALL:
        where = f"{kind}{path}"
        if path in (".metadata", ".apiVersion", ".kind"):
            continue
        assert not node.keys() & {"$ref", "anyOf", "oneOf", "allOf", "const", "title", "nullable"}, where
        if node.get("type") == "string":
            assert "maxLength" in node or "enum" in node, where
        if node.get("type") == "array":
            assert "maxItems" in node, where
        if "additionalProperties" in node:
            assert "maxProperties" in node, where
            assert "properties" not in node, where
        if node.get("type") == "integer":
            assert node["format"] in ("int32", "int64"), where
            assert "minimum" in node, where


def test_every_field_of_a_spec_is_described() -> None:
    for kind, path, node in ALL:
        name = path.rpartition(".")[2]
        if path.startswith(".spec.") and "[]" not in name:
            assert node.get("description"), f"{kind}{path}"


def test_the_status_has_no_floats_and_its_lists_are_merged_by_key() -> None:
    for kind, path, node in ALL:
        if path.startswith(".status"):
            assert node.get("type") != "number", f"{kind}{path}"
            if node.get("type") == "array" and node["items"]["type"] == "object":
                assert node["x-kubernetes-list-type"] == "map", f"{kind}{path}"
                keys = node["x-kubernetes-list-map-keys"]
                assert set(keys) <= set(node["items"]["required"]), f"{kind}{path}"


def test_names_of_fields_follow_the_conventions() -> None:
    for kind, path, node in ALL:
        name = path.rpartition(".")[2]
        if node.get("format") == "date-time":
            assert name.endswith("Time") or name in ("time", "notBefore"), f"{kind}{path}"
        if name.lower().endswith(("timeout", "duration", "deadline")):
            pytest.fail(f"{kind}{path}: durations end in Seconds")


def test_a_kind_has_the_training_part_and_the_cluster_part_and_nothing_else() -> None:
    cluster = {field.alias for field in ClusterSpec.model_fields.values()}
    for kind in KINDS:
        training = {field.alias or name for name, field in SPECS[kind].model_fields.items()}
        assert not cluster & training
        assert set(schema(kind)["properties"]["spec"]["properties"]) == cluster | training


def test_every_field_but_the_run_policy_is_fixed() -> None:
    for kind in KINDS:
        spec = schema(kind)["properties"]["spec"]
        fixed = {rule["fieldPath"][1:] for rule in spec["x-kubernetes-validations"] if "oldSelf" in rule["rule"]}
        assert fixed == set(spec["properties"]) - {"runPolicy"}


def test_columns_short_names_and_categories_are_as_documented() -> None:
    wanted = {
        "SFTJob": (
            ["sft"],
            ["PHASE", "STEP", "LOSS", "ETA", "RESTARTS", "AGE"],
            ["DURATION", "GPU-HOURS", "TOK/S", "NODES", "MODEL", "CHANGE", "REASON", "MESSAGE"],
        ),
        "RewardJob": (
            None,
            ["PHASE", "STEP", "LOSS", "ACCURACY", "ETA", "RESTARTS", "AGE"],
            ["DURATION", "GPU-HOURS", "TOK/S", "NODES", "MODEL", "CHANGE", "REASON", "MESSAGE"],
        ),
        "DPOJob": (
            ["dpo"],
            ["PHASE", "STEP", "LOSS", "MARGIN", "ETA", "RESTARTS", "AGE"],
            ["ACCURACY", "DURATION", "GPU-HOURS", "TOK/S", "NODES", "MODEL", "CHANGE", "REASON", "MESSAGE"],
        ),
        "GRPOJob": (
            ["grpo"],
            ["PHASE", "STEP", "REWARD", "KL", "ETA", "RESTARTS", "AGE"],
            ["LOSS", "DURATION", "GPU-HOURS", "TOK/S", "NODES", "MODEL", "CHANGE", "REASON", "MESSAGE"],
        ),
    }
    for kind, (short, narrow, wide) in wanted.items():
        spec = crd.crd(INFOS[kind])["spec"]  # type: ignore[index]
        assert spec["names"].get("shortNames") == short
        assert spec["names"]["categories"] == ["trl", "all"]
        columns = spec["versions"][0]["additionalPrinterColumns"]
        assert [column["name"] for column in columns if "priority" not in column] == narrow
        assert [column["name"] for column in columns if column.get("priority") == 1] == wide
        assert spec["versions"][0]["subresources"] == {"status": {}}


class Inner(Model):
    a: Literal["x"] = "x"
    b: int | None = None


class Outer(Model):
    inner: Inner = Inner()
    """Words beside a reference."""
    exclusive: float = Field(gt=0, lt=1)
    optional: list[int] | None = None


def test_what_pydantic_says_otherwise_is_said_in_structural_terms() -> None:
    found = structural_schema(Outer)["properties"]
    assert found["inner"]["description"] == "Words beside a reference."
    assert found["inner"]["default"] == {"a": "x"}
    assert found["inner"]["properties"]["a"]["enum"] == ["x"]
    assert found["inner"]["properties"]["b"] == {"type": "integer", "format": "int32", "maximum": 2**31 - 1}
    bounds = {"minimum": 0, "exclusiveMinimum": True, "maximum": 1, "exclusiveMaximum": True}
    assert found["exclusive"] == {"type": "number", **bounds}
    assert found["optional"]["type"] == "array"


class Union(Model):
    either: int | list[str]


class Pair(Model):
    both: tuple[int, str]


@pytest.mark.parametrize("model", [Union, Pair])
def test_what_a_structural_schema_cannot_say_is_refused(model: type[Model]) -> None:
    with pytest.raises(ValueError, match="structural schema"):
        structural_schema(model)


def test_the_charts_copies_can_be_switched_off_and_kept() -> None:
    text = crd.chart_copy("apiVersion: v1\nmetadata:\n  name: x\nspec: {}\n")
    assert text.startswith("{{- if .Values.crds.enabled }}\n")
    assert "metadata:\n  {{- if .Values.crds.keep }}\n  annotations:\n    helm.sh/resource-policy: keep\n" in text
    assert text.endswith("{{- end }}\n")
