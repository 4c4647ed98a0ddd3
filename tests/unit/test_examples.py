"""The examples under examples/ are what the API accepts, to the letter."""

from pathlib import Path

import pytest
import yaml

from trl_contract.spec import SPECS
from trl_contract.upstreams import upstreams
from trl_operator.api.kinds import KINDS

FOLDER = Path(__file__).parents[2] / "examples"


def documents(path: Path) -> list[dict]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document.get("kind") in KINDS]


EXAMPLES = sorted(path for path in FOLDER.rglob("*.yaml") if documents(path))


def test_every_kind_has_an_example() -> None:
    assert {document["kind"] for path in EXAMPLES for document in documents(path)} == set(SPECS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_an_example_is_a_valid_resource(path: Path) -> None:
    for document in documents(path):
        assert KINDS[document["kind"]].spec.model_validate(document["spec"])


def test_the_chain_names_its_own_jobs_and_has_both_ways_from_sft() -> None:
    jobs = {
        (document["kind"], document["metadata"]["name"]): KINDS[document["kind"]].spec.model_validate(document["spec"])
        for path in (FOLDER / "chain").glob("*.yaml")
        for document in documents(path)
    }
    uses = {(kind, upstream.kind) for (kind, _), spec in jobs.items() for upstream in upstreams(spec)}
    named = {(upstream.kind, upstream.name) for spec in jobs.values() for upstream in upstreams(spec)}
    assert named <= jobs.keys()
    assert uses == {
        ("RewardJob", "SFTJob"), ("DPOJob", "SFTJob"), ("GRPOJob", "SFTJob"), ("GRPOJob", "RewardJob"),
    }  # fmt: skip
