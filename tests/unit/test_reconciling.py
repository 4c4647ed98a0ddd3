"""What kstatus (Flux, Helm) and Argo CD make of a job, by their own rules."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from kstatus import compute
from lupa.lua51 import LuaRuntime
from shown import Make, condition, running

from trl_operator.api.crd import crd
from trl_operator.api.job import parse_job
from trl_operator.api.kinds import KINDS
from trl_operator.plan.acceptance import Blocker
from trl_operator.plan.observation import format_time
from trl_operator.plan.view import View
from trl_operator.status.lifecycle import decide
from trl_operator.status.refusal import not_read, refused

PATCH = Path(__file__).parents[2] / "deploy/argocd/argocd-cm.yaml"
SCRIPTS = yaml.safe_load(PATCH.read_text())["data"]
WAITS = {"runPolicy": {"suspend": True}}
Status = dict[str, Any]


def argocd(obj: dict[str, Any]) -> str:
    """The health that our script, run as Argo CD does (Lua 5.1, the object as `obj`), gives a job."""
    lua = LuaRuntime(register_eval=False)
    lua.globals().obj = lua.table_from(obj, recursive=True)
    health = lua.execute(SCRIPTS[f"resource.customizations.health.trl-operator.io_{obj['kind']}"])
    assert health.message, "it says why"
    return str(health.status)


@pytest.fixture
def told(make_job: Make, make_child: Make, make_pod: Make, now: Any) -> Callable[[str], Status]:
    """A status that is decided of a job in this state."""
    job, starts = running(make_job, make_child, now)
    pod = make_pod(0)
    runs = decide(job, starts, View(make_child(0), pods=(pod,)), now).status
    suspended, cancelled = make_job(**WAITS), make_job(runPolicy={"cancel": True})

    def ended(code: int, why: str | None = None, maximum: int = 3) -> Status:
        phase, child = ("Failed", "Failed") if code else ("Succeeded", "Succeeded")
        record = {"outcome": phase, "time": format_time(now)} | ({"reason": why} if why else {})
        over = make_pod(0, phase, exit_code=code, record=record)
        return decide(job, runs, View(make_child(0, child), pods=(over,)), now).status

    def waits(reason: str, kind: str = "Accepted") -> Status:
        return decide(job, {}, View(blocker=Blocker(reason, "m", condition=kind)), now).status  # type: ignore[arg-type]

    silent = now + timedelta(days=1)
    states: dict[str, Callable[[], Status]] = {
        "unseen": lambda: {"observedGeneration": -1},
        "waits": lambda: waits("ConfigMapNotFound"),
        "blocked": lambda: waits("UpstreamNotFound", "UpstreamReady"),
        "invalid": lambda: waits("InvalidSpec"),
        "not read": lambda: not_read(runs, 1, "False", "InvalidSpec", "spec.x", now),
        "newer": lambda: not_read({}, 1, "Unknown", "NewerOperatorNeeded", "spec.x", now),
        "starts": lambda: starts,
        "refused": lambda: refused(job, starts, "PyTorchJob x", "exceeded quota: q", now),
        "runs": lambda: runs,
        "silent": lambda: decide(job, runs, View(make_child(0), pods=(pod,)), silent).status,
        "stops": lambda: decide(suspended, runs, View(make_child(0), pods=(pod,)), now).status,
        "rests": lambda: decide(suspended, runs, View(), now).status,
        "restarts": lambda: ended(1),
        "succeeded": lambda: ended(0),
        "failed": lambda: ended(10, "DataFormatError"),
        "cancelled": lambda: decide(cancelled, runs, View(), now).status,
        "cancelled at rest": lambda: decide(cancelled, states["rests"](), View(), now).status,
    }
    return lambda state: states[state]()


@pytest.mark.parametrize(
    ("state", "kstatus", "argo"),
    [
        ("unseen", "InProgress", "Progressing"),
        ("waits", "InProgress", "Progressing"),
        ("blocked", "InProgress", "Progressing"),
        ("invalid", "Failed", "Degraded"),
        ("not read", "Failed", "Degraded"),
        ("newer", "InProgress", "Progressing"),
        ("starts", "InProgress", "Progressing"),
        ("refused", "InProgress", "Progressing"),
        ("runs", "InProgress", "Progressing"),
        ("silent", "InProgress", "Progressing"),
        ("stops", "InProgress", "Progressing"),
        ("rests", "Current", "Suspended"),
        ("restarts", "InProgress", "Progressing"),
        ("succeeded", "Current", "Healthy"),
        ("failed", "Failed", "Degraded"),
        ("cancelled", "Current", "Healthy"),
        ("cancelled at rest", "Current", "Healthy"),
    ],
)
def test_a_job_is_read_as_what_it_is(
    told: Callable[[str], Status], job_object: Make, state: str, kstatus: str, argo: str
) -> None:
    obj = {**job_object(), "status": told(state)}
    assert (compute(obj), argocd(obj)) == (kstatus, argo)
    # Whatever was decided: not about this spec.
    obj["metadata"]["generation"] = 2
    assert (compute(obj), argocd(obj)) == ("InProgress", "Progressing")


def test_a_job_that_no_operator_has_seen_says_so_by_its_schema() -> None:
    for kind, info in KINDS.items():
        schema = crd(info)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        assert schema["properties"]["status"]["default"] == {"observedGeneration": -1}
        assert f"resource.customizations.health.trl-operator.io_{kind}" in SCRIPTS
    assert len(SCRIPTS) == len(KINDS)


def test_what_it_does_or_waits_for_is_said(told: Callable[[str], Status]) -> None:
    said = {state: condition(told(state), "Reconciling").get("reason") for state in ("blocked", "refused", "runs")}
    assert said == {"blocked": "UpstreamNotFound", "refused": "QuotaExceeded", "runs": "AllPodsRunning"}


def test_a_job_that_is_accepted_after_all_goes_on(told: Callable[[str], Status], job_object: Make, now: Any) -> None:
    for state in ("invalid", "newer"):
        again = decide(parse_job(job_object()), told(state), View(), now).status
        assert (condition(again, "Stalled"), condition(again, "Reconciling")["status"]) == ({}, "True")


def test_of_a_job_that_has_ended_only_the_generation_changes(
    told: Callable[[str], Status], job_object: Make, now: Any
) -> None:
    for state in ("succeeded", "failed", "cancelled"):
        edited = job_object()
        edited["metadata"]["generation"] = 2
        later = decide(parse_job(edited), told(state), View(), now + timedelta(days=1)).status
        assert later == {**told(state), "observedGeneration": 2}


@pytest.mark.parametrize(
    ("state", "said"),
    [("succeeded", ("True", "False")), ("failed", ("False", "True")), ("cancelled", ("False", "False"))],
)
def test_three_conditions_come_at_the_end_and_not_before(
    told: Callable[[str], Status], state: str, said: tuple[str, str]
) -> None:
    ends = ("Finished", "Succeeded", "Failed")
    for earlier in ("unseen", "waits", "runs", "stops", "rests", "restarts"):
        assert [condition(told(earlier), kind) for kind in ends] == [{}, {}, {}]
    found = {kind: condition(told(state), kind) for kind in ends}
    assert (found["Finished"]["status"], found["Succeeded"]["status"], found["Failed"]["status"]) == ("True", *said)
    assert len({end["reason"] for end in found.values()}) == 1
