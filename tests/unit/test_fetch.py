"""The command that fetches what a job has left, as a shell takes it; tests/e2e/test_jobs.py runs it for real."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from shown import Make

from trl_operator.render.fetch import fetch_command
from trl_operator.settings import PodSecurity

KUBECTL = """#!/usr/bin/env python3
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
sys.exit(sys.argv[3] == os.environ["FAILS"])
"""


def calls(command: str, folder: Path, fails: str) -> tuple[int, list[list[str]]]:
    """What the command gives to kubectl, one of whose verbs fails, and how it ends."""
    (folder / "kubectl").write_text(KUBECTL)
    (folder / "kubectl").chmod(0o755)
    told = folder / "calls"
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(told), "FAILS": fails}
    done = subprocess.run(["sh", "-c", command], env=environment, cwd=folder)
    return done.returncode, [json.loads(line) for line in told.read_text().splitlines()]


@pytest.mark.parametrize(
    ("fails", "verbs"),
    [
        ("", ["run", "wait", "cp", "delete"]),
        ("cp", ["run", "wait", "cp", "delete"]),
        ("wait", ["run", "wait", "delete"]),
        # Somebody else's pod is not deleted.
        ("run", ["run"]),
    ],
)
def test_its_pod_is_deleted_however_it_ends_and_a_failure_is_told(
    make_job: Make, tmp_path: Path, fails: str, verbs: list[str]
) -> None:
    command = fetch_command(make_job(), "trainer:1", "model", "u/final")
    assert command is not None
    code, told = calls(command, tmp_path, fails)
    assert [call[2] for call in told] == verbs
    assert (code != 0) == bool(fails)


def test_a_trainer_that_lies_about_its_path_runs_nothing(make_job: Make, tmp_path: Path) -> None:
    path = "u/'; touch stolen; $(touch stolen) `touch stolen`\ntouch stolen #"
    command = fetch_command(make_job(), "trainer:1", "model", path)
    assert command is not None
    code, told = calls(command, tmp_path, "")
    assert (code, told[2][-2:]) == (0, [f"tune-files:/claim/{path}", "tune-model"])
    assert not (tmp_path / "stolen").exists()


def test_its_pod_is_restricted_reads_only_and_goes_where_the_jobs_pods_go(make_job: Make, tmp_path: Path) -> None:
    job = make_job(
        tolerations=[{"key": "gpu", "operator": "Exists"}], imagePullSecrets=[{"name": "pull"}], storage={"size": "1Gi"}
    )
    job = replace(job, security=PodSecurity(run_as_user=7))
    command = fetch_command(job, "trainer:1", "adapter", "u/final/adapter")
    assert command is not None
    _, [run, *_] = calls(command, tmp_path, "")
    [overrides] = [argument.removeprefix("--overrides=") for argument in run if argument.startswith("--overrides=")]
    spec = json.loads(overrides)["spec"]
    [container] = spec["containers"]
    assert container["volumeMounts"] == [{"name": "claim", "mountPath": "/claim", "readOnly": True}]
    assert spec["volumes"] == [{"name": "claim", "persistentVolumeClaim": {"claimName": "tune-dpo"}}]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert spec["securityContext"]["runAsUser"] == 7
    assert (spec["tolerations"], spec["imagePullSecrets"]) == (
        [{"key": "gpu", "operator": "Exists"}],
        [{"name": "pull"}],
    )


def test_a_command_that_is_too_long_for_a_status_is_left_out(make_job: Make) -> None:
    assert fetch_command(make_job(), "trainer:1", "model", "u" * 2000) is None
