"""docs/kill-matrix.md claims no more than what was run."""

import json
from pathlib import Path
from typing import Any

import pytest
from kill_report import report
from operations import ENGINES, PARTS

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def whole() -> dict[str, Any]:
    """Every part has been run."""
    part = {"calls": 1, "writes": 1, "kills": 2, "missed": [], "seconds": 1.0, "date": "2026-11-27"}
    return {"matrix": {"DPOJob start": part, **{" ".join(name): part for name in (*PARTS, *ENGINES)}}}


def test_the_page_is_that_of_what_was_found() -> None:
    found = report(json.loads((DOCS / "kill-matrix.json").read_text()))
    page = (DOCS / "kill-matrix.md").read_text()
    # The last line says on how many cores the last part was run.
    assert found.splitlines()[:-1] == page.splitlines()[:-1]


def test_the_summary_is_of_all_parts_only_if_all_were_run(whole: dict[str, Any]) -> None:
    parts = len(whole["matrix"])
    assert "kills of the operator at chosen calls, 0 random" in report(whole)
    assert "led: every job came to the end" in report(whole)
    assert "Not run" not in report(whole)
    del whole["matrix"]["DPOJob create"]
    summary = report(whole).splitlines()[2]
    assert f"at chosen calls ({parts - 1} of {parts} parts), 0 random" in summary
    assert "led: in the parts that were run and passed, every job came to the end" in summary
    assert "**Not run, or not passed: DPOJob create.**" in report(whole)
