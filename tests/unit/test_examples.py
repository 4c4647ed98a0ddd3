"""The examples under examples/ are what the API accepts, to the letter."""

from pathlib import Path

import pytest
import yaml

from trl_contract.training import SPECS
from trl_operator.api.kinds import KINDS

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def documents(path: Path) -> list[dict]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document["kind"] in KINDS]


def test_every_kind_has_an_example() -> None:
    assert {document["kind"] for path in EXAMPLES for document in documents(path)} == set(SPECS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_valid_resource(path: Path) -> None:
    for document in documents(path):
        assert KINDS[document["kind"]].spec.model_validate(document["spec"])
