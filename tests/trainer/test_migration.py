"""The published configurations of docs/migration.md: each job file says what its table says, and explain takes it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import standins
import yaml

from trl_trainer.local.cli import main

JOBS = sorted(standins.JOBS.glob("*.yaml"))
DOCS = Path(__file__).parents[2] / "docs" / "migration.md"


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job files on rows of their own, and a cache of the hub with stand-ins of their models."""
    folder = tmp_path_factory.mktemp("offline")
    standins.main(folder)
    return folder


@pytest.mark.parametrize("name", [path.name for path in JOBS])
def test_explain_takes_the_job_offline(
    name: str, offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Both read the environment when they are imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(offline / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["explain", str(offline / name), "--storage", str(offline / "out")]) == 0
    out = capsys.readouterr().out
    training = yaml.safe_load((standins.JOBS / name).read_text())["spec"]["training"]
    config = yaml.safe_load(out.partition("\n")[2].split("\n\n")[0])
    assert config["learning_rate"] == training["learningRate"]
    assert config["gradient_accumulation_steps"] == training["gradientAccumulationSteps"]
    assert "the smallest number that fits: " in out
    assert ("this machine cannot run it, spec.peft.method: qlora needs a GPU" in out) == ("qlora" in name)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, f"{path}.{name}" if path else name)
    else:
        yield path, value


@pytest.mark.parametrize("name", [path.name for path in JOBS])
def test_the_table_says_what_the_file_says(name: str) -> None:
    _, section = re.split(rf"\n`{name}`", DOCS.read_text())
    spec = dict(leaves(yaml.safe_load((standins.JOBS / name).read_text())["spec"]))
    told: list[str] = []
    for row in section.split("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in re.split(r" \|(?= |$)", row)]
        if not row.startswith("| ") or cells[0] == "| there":
            continue
        assert len(cells) >= 3, row
        assert cells[1] or cells[2], f"nothing stands for it, and nobody says why: {row}"
        for path, colon, value in (cell.partition(": ") for cell in re.findall("`([^`]+)`", cells[1])):
            told.append(path)
            assert not colon or spec[path] == yaml.safe_load(value), row
    untold = [path for path in spec if not any(path == said or path.startswith(f"{said}.") for said in told)]
    assert untold == []
