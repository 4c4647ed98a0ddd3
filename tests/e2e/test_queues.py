"""Jobs on real pods that share a Kueue quota of one: preempted, cancelled and continued, all with the same result."""

import json
from collections.abc import Callable
from typing import Any

import jobs
from jobs import BACKEND, OTHER, SECONDS, wait_for

QUOTA = 1
SHORT = "insufficient unused quota for cpu"
# Enough that no machine has taken them all before a status says, up to 10 s later, that a job has begun.
STEPS = 3000
Obj = dict[str, Any]


def job(name: str, backend: str, priority: str, steps: int = STEPS, **checkpoint: Any) -> Obj:
    """A job of one node in the queue; all of as many steps train the same in the same way."""
    found = jobs.job("SFTJob", backend, maxSteps=steps)
    found["metadata"]["name"] = name
    found["spec"] |= {
        "numNodes": 1,
        "queue": {"name": "team", "priorityClass": priority},
        "checkpoint": {"everySteps": 500, **checkpoint},
        "runPolicy": {"maxRestarts": 0},
    }
    return found


def distances(kubectl: Any, team: str, image: str, *uids: str) -> list[float]:
    """How far losses and weights of the jobs are from those of the first one."""
    kubectl.apply(jobs.script("distances", image, *(f"/models/runs/{uid}" for uid in uids)), namespace=team)
    state = lambda: kubectl.get(f"--namespace={team}", "job/distances")["status"]  # noqa: E731
    wait_for(lambda: state().get("succeeded") or state().get("failed"), SECONDS, lambda: str(state()))
    said = kubectl("logs", f"--namespace={team}", "job/distances")
    assert state().get("succeeded"), said
    kubectl("delete", f"--namespace={team}", "job/distances")
    found: list[float] = json.loads(said.splitlines()[-1])
    return found


def test_a_preempted_job_and_one_that_goes_on_from_a_cancelled_one_end_as_if_undisturbed(
    kubectl: Any, team: str, queue: str, trainer_image: str
) -> None:
    mine = f"--namespace={team}"

    def waits(name: str, what: Callable[[Obj], Any]) -> Obj:
        def look() -> Obj | None:
            found: Obj = kubectl.get(mine, f"sftjob/{name}")
            return found if what(found.get("status", {})) else None

        shown = lambda: kubectl("get", mine, "sftjobs,workloads,pods,events", "--output=yaml")  # noqa: E731
        return dict(wait_for(look, SECONDS, shown))

    def phase(wanted: str) -> Callable[[Obj], bool]:
        return lambda status: bool(status.get("phase") == wanted)

    def trains(status: Obj) -> bool:
        return bool(status.get("progress", {}).get("step"))

    kubectl.apply(job("low", OTHER, "low"), namespace=team)
    waits("low", trains)
    kubectl.apply(job("high", OTHER, "high"), namespace=team)
    waits("low", lambda status: (status["phase"], status["attempt"]) == ("Queued", 1) and SHORT in str(status))
    # A claim of its own, which the one that goes on from it reads.
    cancelled = job("cancelled", BACKEND, "low")
    cancelled["spec"]["storage"] = {"size": "1Gi"}
    kubectl.apply(cancelled, job("continued", OTHER, "low", resumeFrom={"job": "cancelled"}), namespace=team)
    waits("continued", phase("Blocked"))
    high, low = waits("high", phase("Succeeded")), waits("low", phase("Succeeded"))
    waits("cancelled", trains)
    kubectl("patch", mine, "sftjob/cancelled", "--type=merge", '--patch={"spec": {"runPolicy": {"cancel": true}}}')
    left = waits("cancelled", phase("Cancelled"))["status"]["checkpoints"][-1]["step"]
    continued = waits("continued", phase("Succeeded"))
    assert (low["status"]["restarts"], low["status"]["retry"]["counted"]) == (1, 0)
    assert (high["status"]["restarts"], continued["status"]["restarts"]) == (0, 0)
    # SIGTERM has published one.
    assert 0 < low["status"]["resumedFromStep"] < STEPS
    assert 0 < left < STEPS
    assert continued["status"]["resumedFromStep"] == left
    [pod] = kubectl.get(mine, "pods", "--selector=trl-operator.io/job-name=continued")["items"]
    [volume] = [
        each["name"]
        for each in pod["spec"]["volumes"]
        if each.get("persistentVolumeClaim", {}).get("claimName") == "cancelled-sft"
    ]
    [container] = pod["spec"]["containers"]
    assert {each["readOnly"] for each in container["volumeMounts"] if each["name"] == volume} == {True}
    uids = [found["metadata"]["uid"] for found in (high, low, continued)]
    assert max(distances(kubectl, team, trainer_image, *uids)) <= 1e-6
    kubectl("delete", mine, "sftjobs", "low", "high", "cancelled", "continued")
