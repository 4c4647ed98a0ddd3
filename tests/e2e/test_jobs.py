"""One job of each kind on real pods: two nodes, FSDP2, progress in status, a model at the end."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from jobs import BACKEND, GROUPS, INDEX, OTHER, SECONDS, job, wait_for

from devcluster import tools

# Nodes of a job, and which of its ranks is stopped; all of them for `make test-stall`, which names a report.
STOPPED = {"the only rank": (1, 0), "rank 0 of two": (2, 0), "rank 1 of two": (2, 1)}
STALL_REPORT = os.environ.get("STALL_REPORT")
STALL_SECONDS = 60 if STALL_REPORT else 30
STOP = """
import os, pathlib, signal
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    if b"-m\\0trl_trainer\\0" in (folder / "cmdline").read_bytes():
        os.kill(int(folder.name), signal.SIGSTOP)
"""


def one_of(kubectl: Any, team: str, name: str, index: str) -> str:
    """The pod of a job with this index among its nodes, as kubectl takes it."""
    selector = f"--selector=trl-operator.io/job-name={name},{INDEX[BACKEND]}={index}"
    return kubectl("get", f"--namespace={team}", "pods", selector, "--output=name").strip()  # type: ignore[no-any-return]


def status(kubectl: Any, team: str, kind: str) -> dict[str, Any]:
    found = kubectl.get(f"--namespace={team}", f"{kind.lower()}/{kind.removesuffix('Job').lower()}")
    return dict(found.get("status", {}))


def describe(kubectl: Any, team: str, kind: str) -> Callable[[], str]:
    def text() -> str:
        mine = f"--selector=trl-operator.io/job-name={kind.removesuffix('Job').lower()}"
        logs = kubectl("logs", f"--namespace={team}", mine, "--prefix", "--tail=40")
        return f"{kind}: {status(kubectl, team, kind)}\n{logs}"

    return text


def ended(kubectl: Any, team: str, kind: str) -> dict[str, Any] | None:
    found = status(kubectl, team, kind)
    return found if found.get("phase") in ("Succeeded", "Failed") else None


def fetched(kubectl: Any, command: str, folder: Path) -> tuple[int, str]:
    """Run an artifact's command as a user does; return size and digest of the folder that it makes."""
    path = f"{tools.binary('kubectl').parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(kubectl.kubeconfig)}
    done = subprocess.run(["sh", "-c", command], env=environment, cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = sorted((file.relative_to(folder), file.read_bytes()) for file in folder.rglob("*") if file.is_file())
    lines = "".join(f"{name}\n{sha256(data).hexdigest()}\n" for name, data in files)
    return sum(len(data) for _, data in files), f"sha256:{sha256(lines.encode()).hexdigest()}"


def told(kubectl: Any, team: str, name: str) -> list[str]:
    """The reasons of the events about a job, in the order of the alphabet."""
    events = kubectl.get(f"--namespace={team}", "events", f"--field-selector=involvedObject.name={name}")["items"]
    return sorted(event["reason"] for event in events if event["reportingComponent"] == "trl-operator")


@pytest.fixture(scope="module")
def stopped(kubectl: Any, team: str) -> Iterator[Future[dict[str, Any]]]:
    """What becomes of jobs one of whose ranks is stopped, while the other tests run."""
    with ThreadPoolExecutor(1) as beside:
        cases = STOPPED if STALL_REPORT else list(STOPPED)[:1]
        yield beside.submit(lambda: {case: stop_a_rank(kubectl, team, *STOPPED[case]) for case in cases})


def stop_a_rank(kubectl: Any, team: str, nodes: int, rank: int) -> dict[str, Any]:
    """Stop a rank of a job that has a checkpoint; return who has found it and the seconds until then, until the next
    attempt's pods run and until it trains on from the checkpoint."""
    resource = job("SFTJob", maxSteps=100000)
    name = resource["metadata"]["name"] = f"stopped-{nodes}-{rank}"
    resource["spec"] |= {"numNodes": nodes, "checkpoint": {"everySteps": 200}}
    resource["spec"]["runPolicy"] = {"stallTimeoutSeconds": STALL_SECONDS}
    kubectl.apply(resource, namespace=team)
    mine = f"--namespace={team}"

    def seen(reached: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = kubectl.get(mine, f"sftjob/{name}").get("status", {})
            return found if reached(found) else None

        return dict(wait_for(look, SECONDS, lambda: kubectl("get", mine, f"sftjob/{name}", "--output=yaml")))

    seen(lambda found: found.get("checkpoints"))
    began = time.monotonic()
    kubectl("exec", mine, one_of(kubectl, team, name, str(rank)), "--", "python", "-c", STOP)
    restarted = seen(lambda found: found.get("restarts") == 1)
    found_s = time.monotonic() - began
    [said] = [condition["message"] for condition in restarted["conditions"] if condition["type"] == "Running"]
    seen(lambda found: found["attempt"] == 1 and found["phase"] == "Running")
    running_s = time.monotonic() - began
    trains = seen(lambda found: found.get("progress", {}).get("attempt") == 1 and found.get("resumedFromStep"))
    resumed_s = time.monotonic() - began
    kubectl("delete", mine, f"sftjob/{name}")
    seconds = {"found": found_s, "running": running_s, "resumed": resumed_s}
    return {
        "said": said,
        "resumedFromStep": trains["resumedFromStep"],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(("kind", "backend"), [("RewardJob", OTHER), ("GRPOJob", BACKEND)])
def test_a_job_of_two_nodes_succeeds_and_leaves_a_model(
    kubectl: Any, team: str, kind: str, backend: str, tmp_path: Path
) -> None:
    kubectl.apply(job(kind, backend), namespace=team)
    found = wait_for(lambda: ended(kubectl, team, kind), SECONDS, describe(kubectl, team, kind))
    assert found["phase"] == "Succeeded", describe(kubectl, team, kind)()
    assert (found["effective"]["batchSize"], found["effective"]["worldSize"]) == (8, 2)
    assert found["progress"]["display"] == "6/6"
    assert found["workload"]["kind"].lower() == backend
    if backend == "trainjob":
        name = kind.removesuffix("Job").lower()
        [pod, _] = kubectl.get(f"--namespace={team}", "pods", f"--selector=trl-operator.io/job-name={name}")["items"]
        [container] = pod["spec"]["containers"]
        [url] = [each["value"] for each in container["env"] if each["name"] == "KUBEFLOW_TRAINER_SERVER_URL"]
        assert f"/{kind.lower()}s/{name}/" in url, (
            "Trainer, which has a server of its own, has sent the reports elsewhere"
        )
        gate = "/var/run/secrets/kubeflow/trainer" in str(container["volumeMounts"])
        assert gate or os.environ.get("CLUSTER"), "Trainer's status server is not on"
    assert found["restarts"] == 0
    assert [artifact["type"] for artifact in found["artifacts"]] == ["model"]
    assert found["checkpoints"][-1]["step"] == 6
    if kind == "GRPOJob":
        assert {reward["name"] for reward in found["rewards"]} == {"polite", "brief"}
    else:
        assert found["evaluation"]["before"] != found["evaluation"]["after"]
        [message] = [c["message"] for c in found["conditions"] if c["type"] == "Finished"]
        measured = found["evaluation"]["after"][0]
        assert message.startswith(f"training has finished; on held-out rows, {measured['name']} ")
        [artifact] = found["artifacts"]
        size, digest = fetched(kubectl, artifact["fetchCommand"], tmp_path / "reward-model")
        assert (size, digest) == (artifact["size"], artifact["digest"])
        assert kubectl("get", f"--namespace={team}", "pod/reward-files", "--ignore-not-found") == ""
    kubectl("delete", f"--namespace={team}", f"{kind.lower()}/{kind.removesuffix('Job').lower()}")


def test_a_job_whose_pod_is_killed_resumes_from_its_checkpoint(kubectl: Any, team: str) -> None:
    kind = "SFTJob"
    # Enough of them that no machine has taken them all before the pod is deleted.
    resource = job(kind, maxSteps=600)
    resource["spec"]["checkpoint"] = {"everySteps": 50}
    kubectl.apply(resource, namespace=team)
    wait_for(lambda: status(kubectl, team, kind).get("checkpoints"), SECONDS, describe(kubectl, team, kind))
    kubectl("delete", f"--namespace={team}", one_of(kubectl, team, "sft", "1"), "--grace-period=0", "--force")
    found = wait_for(lambda: ended(kubectl, team, kind), SECONDS, describe(kubectl, team, kind))
    assert found["phase"] == "Succeeded", describe(kubectl, team, kind)()
    assert (found["attempt"], found["restarts"]) == (1, 1)
    assert found["resumedFromStep"] >= 50
    assert found["progress"]["display"] == "600/600"
    once = ["AttemptFailed", "FirstCheckpoint", "LastCheckpoint", "Succeeded"]
    # So many steps on so few rows may be warned of: once each.
    warned = [warning["reason"] for warning in found.get("warnings", [])]
    wanted = sorted([*once, *warned, *["AttemptStarted", "Running"] * 2])
    wait_for(lambda: told(kubectl, team, "sft") == wanted, 30, lambda: str(told(kubectl, team, "sft")))
    # The failed attempt goes with the next end, after the status that says so.
    mine = (f"--namespace={team}", f"{BACKEND}s", "--selector=trl-operator.io/job-name=sft", "--output=name")
    last = f"{BACKEND}.{GROUPS[BACKEND]}/sft-sft-1"
    wait_for(lambda: kubectl("get", *mine).split() == [last], 120, lambda: kubectl("get", *mine))


def test_a_job_goes_on_when_the_operator_is_killed_and_leaves_only_its_claim(kubectl: Any, team: str) -> None:
    kind = "DPOJob"
    resource = job(kind, maxSteps=400)
    resource["spec"]["storage"] = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}
    kubectl.apply(resource, namespace=team)
    step = lambda: status(kubectl, team, kind).get("progress", {}).get("step")  # noqa: E731
    wait_for(step, SECONDS, describe(kubectl, team, kind))
    kubectl("delete", "--namespace=trl-system", "pod", "--all", "--grace-period=0", "--force", "--wait=false")
    kubectl("wait", f"--namespace={team}", "--for=condition=Finished", f"--timeout={SECONDS}s", "dpojob/dpo")
    found = status(kubectl, team, kind)
    assert found["phase"] == "Succeeded", describe(kubectl, team, kind)()
    assert (found["attempt"], found["restarts"]) == (0, 0)
    assert found["progress"]["display"] == "400/400"
    assert found["effective"]["worldSize"] == 2
    mine = "--selector=trl-operator.io/job-name=dpo"
    children = kubectl.get(f"--namespace={team}", f"{BACKEND}s", mine)["items"]
    assert [child["metadata"]["name"] for child in children] == ["dpo-dpo-0"]
    assert "400/400" in kubectl("get", f"--namespace={team}", "dpojobs")
    kubectl("delete", f"--namespace={team}", "dpojob/dpo")
    kinds = f"{BACKEND}s,pods,services,configmaps,networkpolicies"
    gone = lambda: not kubectl.get(f"--namespace={team}", kinds, mine)["items"]  # noqa: E731
    wait_for(gone, 120, lambda: kubectl("get", f"--namespace={team}", kinds, mine))
    claims = kubectl.get(f"--namespace={team}", "persistentvolumeclaims", mine)["items"]
    assert [claim["metadata"]["name"] for claim in claims] == ["dpo-dpo"]


def test_a_chain_is_applied_as_one_folder_and_each_job_takes_what_the_one_before_has_left(
    kubectl: Any, team: str, tmp_path: Path
) -> None:
    first, second = job("SFTJob", maxSteps=2), job("DPOJob", maxSteps=2)
    # A claim of its own for each, ReadWriteOnce.
    same = {"numNodes": 1, "storage": {"size": "1Gi"}, "evaluation": {"enabled": False}}
    first["spec"] |= {**same, "peft": {"method": "lora"}}
    second["spec"] |= {**same, "model": {"fromJob": {"kind": "SFTJob", "name": "chain-base"}}}
    # The one that waits comes first.
    for name, resource in (("chain", second), ("chain-base", first)):
        resource["metadata"]["name"] = name
        (tmp_path / f"{name}.json").write_text(json.dumps(resource))
    kubectl("apply", f"--namespace={team}", f"--filename={tmp_path}")

    def shown() -> str:
        return kubectl("get", f"--namespace={team}", "sftjobs,dpojobs", "--output=wide")

    blocked = lambda: kubectl.get(f"--namespace={team}", "dpojob/chain").get("status", {}).get("phase") == "Blocked"  # noqa: E731
    wait_for(blocked, 30, shown)
    ended = lambda: kubectl.get(f"--namespace={team}", "dpojob/chain")["status"].get("completionTime")  # noqa: E731
    wait_for(ended, SECONDS, lambda: shown() + describe(kubectl, team, "DPOJob")())
    base = kubectl.get(f"--namespace={team}", "sftjob/chain-base")
    found = kubectl.get(f"--namespace={team}", "dpojob/chain")["status"]
    assert found["phase"] == "Succeeded", found
    assert (found["attempt"], found["effective"]["model"]) == (0, "sftjob/chain-base")
    left = {artifact["type"]: artifact["digest"] for artifact in base["status"]["artifacts"]}
    assert left.keys() == {"model", "adapter"}
    ref = {"kind": "SFTJob", "name": "chain-base", "uid": base["metadata"]["uid"], "digest": left["model"]}
    assert found["run"]["upstreams"] == [ref]
    kubectl("delete", f"--namespace={team}", "sftjob/chain-base", "dpojob/chain")


def test_a_typo_in_a_field_name_is_refused(kubectl: Any, team: str) -> None:
    resource = job("DPOJob")
    resource["spec"]["training"]["learningRat"] = 1e-4
    with pytest.raises(AssertionError, match=r'unknown field "spec\.training\.learningRat"'):
        kubectl("apply", f"--namespace={team}", "--filename=-", given=json.dumps(resource))


def test_a_job_whose_rank_is_stopped_goes_on_from_its_checkpoint(stopped: Future[dict[str, Any]]) -> None:
    found = stopped.result()
    if STALL_REPORT:
        report = {"stallTimeoutSeconds": STALL_SECONDS, "cores": os.cpu_count(), "load": os.getloadavg()[0], **found}
        Path(STALL_REPORT).write_text(json.dumps(report, indent=1) + "\n")
    for case, measured in found.items():
        rank = STOPPED[case][1]
        assert f"attempt 0 failed: rank {rank} was stopped (SIGSTOP, or a debugger)" in measured["said"], case
        assert measured["resumedFromStep"] >= 200, case
        assert measured["seconds"]["resumed"] <= 150, case
