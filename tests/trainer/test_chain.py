"""`run` of a folder: jobs that use each other's results, each after those that it waits for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainer_kit import Warm, conversations, preference_pairs, write_jsonl

from trl_contract.jobfile import JOB_UID
from trl_trainer.errors import UserError
from trl_trainer.local.chain import in_order
from trl_trainer.local.cli import main
from trl_trainer.local.resource import read, read_all

BASE: dict[str, Any] = {"volume": {"claimName": "models", "path": "base"}}
ROWS = {"SFTJob": "conversations", "DPOJob": "pairs", "RewardJob": "pairs"}


def job(kind: str, name: str, model: dict[str, Any] = BASE, **spec: Any) -> dict[str, Any]:
    rows = {"train": {"volume": {"claimName": "models", "path": f"{ROWS[kind]}.jsonl"}}}
    training = {"maxSteps": 1, "perDeviceBatchSize": 2, "gradientAccumulationSteps": 1}
    given = {"model": model, "dataset": rows, "training": training, "evaluation": {"enabled": False}, **spec}
    return {
        "apiVersion": "trl-operator.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"storage": {"size": "1Gi"}, "peft": {"method": "none"}, **given},
    }


def of(kind: str, name: str) -> dict[str, Any]:
    return {"fromJob": {"kind": kind, "name": name}}


def write(folder: Path, *jobs: dict[str, Any]) -> Path:
    """Write each job into a file of its own, in this order of name."""
    folder.mkdir()
    for number, each in enumerate(jobs):
        (folder / f"{number}.yaml").write_text(yaml.safe_dump(each))
    (folder / "notes.txt").write_text("no job: {")
    return folder


def test_each_job_feeds_the_next_and_one_that_fails_stops_only_those_that_use_it(
    warm: Warm, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim, out = tmp_path / "claim", tmp_path / "out"
    claim.mkdir()
    (claim / "base").symlink_to(model_folder)
    write_jsonl(claim / "conversations.jsonl", conversations(20))
    write_jsonl(claim / "pairs.jsonl", preference_pairs(20))
    bad = job("SFTJob", "bad", dataset={"train": {"inline": [{"messages": "none"}]}})
    jobs = write(
        tmp_path / "jobs",
        job("DPOJob", "last", of("SFTJob", "first")),
        job("SFTJob", "first", peft={"method": "lora"}),
        bad,
        job("RewardJob", "lost", of("SFTJob", "bad")),
    )
    argv = ["run", str(jobs), "--volume", f"models={claim}", "--storage", str(out)]
    environment = {**os.environ, **warm.environment(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "trl_trainer", *argv],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
        check=False,
    )
    assert done.returncode == 10, done.stdout + done.stderr
    begun = [line.removeprefix("== ") for line in done.stdout.splitlines() if line.startswith("== ")]
    assert begun == ["SFTJob first", "DPOJob last", "SFTJob bad", "all jobs"]
    assert "  RewardJob lost: not run, since SFTJob bad did not succeed" in done.stdout
    assert "  DPOJob last: Succeeded" in done.stdout
    [first], [last] = out.glob("first-*/final"), out.glob("last-*/final")
    assert json.loads((last / "resolved.json").read_text())["paths"]["model"] == str(first)
    card = (last / "README.md").read_text()
    assert f"SFTJob default/first, uid {first.parent.name}" in card
    assert "SFTJob first" in card

    # What is there stays as it is.
    for number in (2, 3):
        (jobs / f"{number}.yaml").unlink()
    before = first.stat().st_mtime_ns, last.stat().st_mtime_ns
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert f"done already: {first}" in text
    assert f"done already: {last}" in text
    assert before == (first.stat().st_mtime_ns, last.stat().st_mtime_ns)


def names(folder: Path) -> list[str]:
    return [each.name for each in in_order(read_all(folder))]


def test_the_order_is_that_of_the_files_but_for_what_a_job_waits_for(tmp_path: Path) -> None:
    reference = {"referenceModel": {"mode": "explicit", "source": of("SFTJob", "c")}}
    jobs = [
        job("DPOJob", "a", dpo=reference),
        job("SFTJob", "b"),
        job("SFTJob", "c", of("DPOJob", "e")),
        job("RewardJob", "d"),
        job("DPOJob", "e"),
    ]
    assert names(write(tmp_path / "jobs", *jobs)) == ["b", "d", "e", "c", "a"]
    assert names(write(tmp_path / "outside", job("DPOJob", "a", of("SFTJob", "elsewhere")))) == ["a"]


def test_a_cycle_a_name_that_is_there_twice_and_what_is_missing_of_any_job_are_told_before_one_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cycle = [job("SFTJob", "a", of("SFTJob", "b")), job("SFTJob", "b", of("SFTJob", "a")), job("SFTJob", "c")]
    with pytest.raises(UserError, match="fromJob: SFTJob a, SFTJob b wait for each other: give one of them"):
        names(write(tmp_path / "cycle", *cycle))
    with pytest.raises(UserError, match=r"1.yaml: SFTJob a is there twice: give one of them another name"):
        names(write(tmp_path / "twice", job("SFTJob", "a"), job("SFTJob", "a")))
    typo = job("SFTJob", "b", trainin={})
    with pytest.raises(UserError, match=r"1.yaml: spec.trainin: SFTJob has no such field"):
        names(write(tmp_path / "typo", job("SFTJob", "a"), typo))
    two = write(tmp_path / "two", job("DPOJob", "after", of("SFTJob", "first")), job("SFTJob", "first"))
    assert main(["run", str(two), "--storage", str(tmp_path / "out")]) == 10
    text = capsys.readouterr().err
    assert "SFTJob first: spec.model.volume: say where claim models is" in text
    assert "DPOJob after: spec.dataset.train.volume: say where claim models is" in text
    assert "has no model" not in text, "the first job will leave it"
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"needs exactly one job; it has DPOJob after, SFTJob first: `run` takes"):
        read(two)


def test_a_job_that_the_user_stops_is_the_last_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = tmp_path / "claim"
    (claim / "base").mkdir(parents=True)
    (claim / "conversations.jsonl").touch()
    # What the job of a user who presses Ctrl-C ends with.
    ends = {"lost": 10, "a": 143}
    monkeypatch.setattr("trl_trainer.local.chain.run", lambda resource, places: ends[resource.name])
    folder = write(tmp_path / "jobs", job("SFTJob", "lost"), job("SFTJob", "a"), job("SFTJob", "b"))
    assert main(["run", str(folder), "--volume", f"models={claim}", "--storage", str(tmp_path / "out")]) == 10
    text = capsys.readouterr().out
    assert "  SFTJob lost: ended with exit code 10" in text
    assert "  SFTJob a: ended with exit code 143" in text
    assert "  SFTJob b: not run, since another one did not succeed" in text
    assert "== SFTJob b" not in text


def test_all_config_maps_of_a_folder_are_there_for_all_jobs(tmp_path: Path) -> None:
    folder = write(tmp_path / "jobs", job("SFTJob", "a"), job("SFTJob", "b"))
    (folder / "9.json").write_text(
        json.dumps({"kind": "ConfigMap", "metadata": {"name": "rows"}, "data": {"r.jsonl": "{}"}})
    )
    assert [each.config_maps for each in read_all(folder)] == [{"rows": {"r.jsonl": b"{}"}}] * 2


def test_a_hub_that_was_away_for_one_job_is_asked_again_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, offline, found = tmp_path / "claim", "HF_HUB_OFFLINE", {}
    (claim / "base").mkdir(parents=True)
    (claim / "conversations.jsonl").touch()
    monkeypatch.setenv(offline, "restored after the test")
    monkeypatch.delenv(offline)

    def run(resource: Any, places: Any) -> int:
        found[resource.name] = os.environ.get(offline)
        os.environ[offline] = "1"
        return 10

    monkeypatch.setattr("trl_trainer.local.chain.run", run)
    folder = write(tmp_path / "jobs", job("SFTJob", "a"), job("SFTJob", "b"))
    assert main(["run", str(folder), "--volume", f"models={claim}", "--storage", str(tmp_path / "out")]) == 10
    assert found == {"a": None, "b": None}


def test_a_supervisor_does_not_take_the_job_of_another_launcher_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, given = tmp_path / "claim", {}
    (claim / "base").mkdir(parents=True)
    (claim / "conversations.jsonl").touch()

    def start(work: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        given.update(variables)
        return subprocess.Popen(["true"])

    monkeypatch.setattr("trl_trainer.local.run._start", start)
    for name in (JOB_UID, "PET_NNODES", "KUBEFLOW_TRAINER_SERVER_TOKEN"):
        monkeypatch.setenv(name, "another's")
    folder = write(tmp_path / "jobs", job("SFTJob", "a"))
    assert main(["run", str(folder), "--volume", f"models={claim}", "--storage", str(tmp_path / "out")]) == 0
    assert "TRL_TERMINATION_LOG" in given
    assert "another's" not in given.values()
