"""Profiles say what the user has not, and nothing else; what they say is what the page tells."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from trl_contract.base import KINDS, Kind
from trl_contract.jobs import JOB_SPECS
from trl_contract.profiles import GROUPS, PROFILES, fill, values
from trl_contract.sources import Dataset
from trl_contract.spec import Profile
from trl_operator.api.job import Job, parse_job
from trl_operator.api.schema import structural_schema
from trl_operator.render.run import pin

ROOT = Path(__file__).parents[2]
EVERY = [(kind, profile) for kind in KINDS for profile in PROFILES]


def at(spec: Any, field: str) -> Any:
    for name in field.split("."):
        spec = spec[name]
    return spec


def nested(fields: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, value in fields.items():
        *sections, name = field.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return found


@pytest.mark.parametrize(("kind", "profile"), EVERY)
def test_a_profile_sets_fields_of_the_kind_that_the_api_server_gives_no_value(kind: Kind, profile: Profile) -> None:
    schema = structural_schema(JOB_SPECS[kind])
    for field in values(kind, profile, adapter=True):
        found = schema
        for name in field.split("."):
            found = found["properties"][name]
        assert "default" not in found, f"{field}: nobody could tell it from what a user has written"


@pytest.mark.parametrize(("kind", "profile"), EVERY)
@pytest.mark.parametrize("nodes", [1, 2, 3, 8])
def test_what_it_sets_keeps_all_rules_on_any_number_of_processes(
    job_object: Callable[..., dict[str, Any]], kind: Kind, profile: Profile, nodes: int
) -> None:
    storage = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}
    obj = job_object(kind, profile=profile, numNodes=nodes, numProcPerNode=2, storage=storage)
    job = parse_job(obj)
    wanted = values(kind, profile, adapter=True)
    assert {field: at(job.training.to_wire(), field) for field in wanted} == wanted
    assert job.origins == dict.fromkeys(wanted, f"profile {profile}")


@pytest.mark.parametrize(("kind", "profile"), EVERY)
def test_what_the_user_writes_wins(kind: Kind, profile: Profile) -> None:
    said = dict.fromkeys(values(kind, profile, adapter=True), 3)
    spec = {"profile": profile, **nested(said)}
    assert fill(kind, spec) == (spec, [])
    for field in said:
        filled, fields = fill(kind, {"profile": profile, **nested({field: 3})})
        assert at(filled, field) == 3
        assert set(fields) == said.keys() - ({*GROUPS} if kind == "GRPOJob" and field in GROUPS else {field})


@pytest.mark.parametrize(
    ("profile", "said", "left"),
    [
        ("smoke", {"training.epochs": 2}, "training.maxSteps"),
        ("smoke", {"dataset.mixture": [{}]}, "dataset.maxExamples"),
        ("balanced", {"training.warmupSteps": 0}, "training.warmupRatio"),
        ("balanced", {"training.lrScheduler": "constant"}, "training.warmupRatio"),
    ],
)
def test_what_the_user_says_in_other_words_wins_too(profile: Profile, said: dict[str, Any], left: str) -> None:
    wanted = set(values("SFTJob", profile, adapter=True))
    assert set(fill("SFTJob", {"profile": profile, **nested(said)})[1]) == wanted - {left}


SAID: dict[str, tuple[Any, ...]] = {
    "training.perDeviceBatchSize": (None, 1, 2, 8),
    "training.gradientAccumulationSteps": (None, 1, 2, 4, 8),
    "numProcPerNode": (1, 3),
}
SAID_OF_GROUPS: dict[str, tuple[Any, ...]] = {
    "grpo.numGenerations": (None, 2, 8, 16),
    "grpo.stepsPerGeneration": (None, 4, 8),
    "evaluation.perDeviceBatchSize": (None, 4),
    "softOverlong": (None, {"cache": 64}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_that_is_valid_without_a_profile_is_valid_with_any(
    job_object: Callable[..., dict[str, Any]], kind: Kind
) -> None:
    said = SAID | (SAID_OF_GROUPS if kind == "GRPOJob" else {})
    valid = 0
    for chosen in product(*said.values()):
        fields = {field: value for field, value in zip(said, chosen, strict=True) if value is not None}
        soft = fields.pop("softOverlong", None)
        spec = job_object(kind)["spec"] | {"profile": None}
        for section, value in nested(fields).items():
            spec[section] = {**spec[section], **value} if section == "grpo" else value
        if soft:
            spec["grpo"] = {**spec["grpo"], "rewards": [{"name": "short", "softOverlong": soft}]}
        try:
            JOB_SPECS[kind].model_validate(spec)
        except ValidationError:
            continue
        valid += 1
        for profile in PROFILES:
            filled, _ = fill(kind, {**spec, "profile": profile})
            try:
                JOB_SPECS[kind].model_validate(filled)
            except ValidationError as error:
                pytest.fail(f"{profile} makes {fields}, softOverlong {soft} invalid: {error}")
    assert valid > (100 if kind == "GRPOJob" else 30), "the values are ordinary ones"


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_of_smoke_are_enough_for_a_hundred_processes(kind: Kind) -> None:
    smoke = values(kind, "smoke", adapter=True)
    rows = smoke["dataset.maxExamples"] * (1 - Dataset.model_fields["eval_split"].default)
    # A process needs a row; a step of grpo has whole groups of different prompts.
    steps = smoke["training.perDeviceBatchSize"] * smoke["training.gradientAccumulationSteps"]
    assert rows >= 100 * (steps / smoke["grpo.numGenerations"] if kind == "GRPOJob" else 1)


@pytest.mark.parametrize(("profile", "least"), [(None, 0.9), ("balanced", 0.9), ("smoke", None)])
def test_smoke_asks_no_accuracy(make_job: Callable[..., Job], profile: Profile | None, least: float | None) -> None:
    assert make_job("RewardJob", profile=profile, reward={"minAccuracy": 0.9}).training.least_accuracy == least


def test_rates_are_those_of_the_method_and_the_kind() -> None:
    full = fill("DPOJob", {"profile": "conservative", "peft": {"method": "none"}})[0]["training"]["learningRate"]
    lora, qlora = (
        fill("DPOJob", {"profile": "conservative", "peft": peft})[0]["training"]["learningRate"]
        for peft in ({}, {"method": "qlora"})
    )
    assert (full, lora, qlora) == (5e-7, 5e-6, 5e-6)


@pytest.mark.parametrize(
    "spec", [{}, {"profile": "fast"}, {"profile": ["smoke"]}, {"profile": "smoke", "training": [], "dataset": "rows"}]
)
def test_what_is_no_spec_is_left_to_its_models(spec: dict[str, Any]) -> None:
    filled, fields = fill("SFTJob", spec)
    assert all(filled[name] == value for name, value in spec.items())
    assert not any(field.startswith(("training.", "dataset.")) for field in fields)


def test_the_run_is_pinned_with_the_values_and_where_they_are_from(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("SFTJob", profile="smoke", training={"maxSteps": 7})
    manifest = pin(job, {}, "trainer:1").manifest
    assert manifest is not None
    written = json.loads(manifest["data"]["job.json"])
    assert (written["spec"]["training"]["maxSteps"], written["spec"]["training"]["maxLength"]) == (7, 256)
    assert written["origins"]["training.maxLength"] == "profile smoke"
    assert "training.maxSteps" not in written["origins"]
    plain = pin(make_job("SFTJob"), {}, "trainer:1").manifest
    assert plain is not None
    assert "origins" not in json.loads(plain["data"]["job.json"])


def test_the_page_has_the_table() -> None:
    page = (ROOT / "docs" / "profiles.md").read_text()
    for line in table():
        assert line in page, f"docs/profiles.md lacks the line\n{line}"
    assert sum(line.startswith("| `") for line in page.splitlines()) == len(table())


def table() -> list[str]:
    """Return the lines of the page's table: fields that all kinds share, then those of each kind."""
    cells: dict[str, dict[Kind, str]] = {}
    for kind in KINDS:
        full, lora = ({name: values(kind, name, adapter=each) for name in PROFILES} for each in (False, True))
        for field in dict.fromkeys(field for found in full.values() for field in found):
            pairs = [(full[name].get(field), lora[name].get(field)) for name in PROFILES]
            cells.setdefault(field, {})[kind] = " | ".join(cell(*pair) for pair in pairs)
    lines = []
    for field, by_kind in cells.items():
        if len(set(by_kind.values())) == 1:
            named = len(by_kind) == len(KINDS) or field.startswith(("dpo.", "grpo."))
            kinds = "" if named else f" ({', '.join(by_kind)})"
            lines.append(f"| `{field}`{kinds} | {next(iter(by_kind.values()))} |")
        else:
            lines += [f"| `{field}` ({kind}) | {each} |" for kind, each in by_kind.items()]
    return lines


def cell(full: Any, lora: Any) -> str:
    if full is None:
        return "–"
    return f"{full:g}" if full == lora else f"{full:g}, adapters {lora:g}"


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "smoke").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_smoke_examples_leave_to_the_profile_what_it_sets(path: Path) -> None:
    obj = yaml.safe_load(path.read_text())
    wanted = values(obj["kind"], "smoke", adapter=True)
    assert fill(obj["kind"], obj["spec"])[1] == list(wanted)


def test_there_is_a_smoke_example_of_each_kind() -> None:
    found = {yaml.safe_load(path.read_text())["kind"] for path in (ROOT / "examples" / "smoke").glob("*.yaml")}
    assert found == set(KINDS)
