"""A status holds 12 KiB, whatever is said; what was cut is told, and what others rely on stays."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from shown import UNSCHEDULABLE, condition

from trl_contract.report import ExitRecord, Progress
from trl_operator.api.status import JobStatus, Run, UpstreamRef
from trl_operator.api.stored import owned, read_status, written
from trl_operator.constants import MANAGER_PROGRESS, MANAGER_STATUS
from trl_operator.plan.acceptance import Blocker
from trl_operator.plan.view import View
from trl_operator.status.lifecycle import decide
from trl_operator.status.progress import last_words, progress_fields, without_eta
from trl_operator.status.size import MARK, MAX_BYTES, fit, size

Make = Callable[..., Any]
Status = dict[str, Any]

NODES = 64
TIME = "2026-11-21T11:20:00.000000Z"
LOG = 'é "quoted"\n' * 400 + "the last line"


def metrics(count: int, *first: str) -> list[dict[str, str]]:
    names = [*first, *(f"{'é' * 60}{number}" for number in range(count - len(first)))]
    return [{"name": name, "value": "-0.123456789"} for name in names]


def fullest(**fields: Any) -> Progress:
    """As much as a report may say."""
    saved = [{"step": step, "path": f"{step}" + "p" * 1000, "time": TIME, "metrics": metrics(8)} for step in range(5)]
    rewards = [{"name": f"{'r' * 60}{number}", "mean": "0.123456789", "std": "0.1"} for number in range(16)]
    said: Status = {
        "activity": "é" * 63,
        "step": 7,
        "totalSteps": 1000,
        "epoch": 0.123456789,
        "etaSeconds": 100000,
        "elapsedSeconds": 1000,
        "gpus": 512,
        "lastUpdateTime": TIME,
        "metrics": [*metrics(24, "loss", "learning_rate", "grad_norm"), *metrics(1, "rewards/margins")][-24:],
        "checkpoints": saved,
        "evaluation": {"before": metrics(24, "loss", "accuracy"), "after": metrics(24, "loss", "accuracy")},
        "evaluationSkipped": {"reason": "HeldOutRowsDropped", "message": "é" * 1024},
        "rewards": rewards,
        "warnings": ["é" * 300] * 8,
        "trainableParameters": 2**62,
        "trainingWarnings": [{"reason": f"R{number}", "message": "é" * 300, "hint": "é" * 300} for number in range(4)],
        "artifacts": [{"type": kind, "uri": "u" * 1024, "digest": "d" * 80} for kind in ("model", "adapter")],
    }
    return Progress.model_validate(said | fields)


class Stored:
    """A status as both of its writers write it; never more than it holds."""

    def __init__(self) -> None:
        self.status: Status = {}

    def write(self, part: Status | None, manager: str) -> None:
        if part is None:
            return
        if manager == MANAGER_STATUS:
            part = fit(part, owned(self.status, MANAGER_PROGRESS))
        other = MANAGER_PROGRESS if manager == MANAGER_STATUS else MANAGER_STATUS
        kept = owned(self.status, other)
        effective = {**kept.get("effective", {}), **part.get("effective", {})}
        warnings = [*kept.get("warnings", ()), *part.get("warnings", ())]
        shared = {name: value for name, value in (("effective", effective), ("warnings", warnings)) if value}
        self.status = {**kept, **part, **shared}
        assert size(self.status) <= MAX_BYTES
        JobStatus.model_validate(self.status)
        again = written(read_status(self.status))
        assert fit(again, owned(self.status, MANAGER_PROGRESS)) == again, "what is cut stays as it is"

    def own(self, part: Status) -> None:
        self.write(without_eta(self.status, part), MANAGER_PROGRESS)
        self.write(part, MANAGER_STATUS)

    def report(self, progress: Progress) -> None:
        self.write(progress_fields(progress, None, self.status), MANAGER_PROGRESS)


@pytest.mark.parametrize("upstreams", [1, 16])
def test_a_status_with_everything_at_its_longest_holds_12_kib(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime, upstreams: int
) -> None:
    job = make_job(
        numNodes=NODES,
        model={"fromJob": {"kind": "SFTJob", "name": "n" * 40}},
        storage={"size": "10Gi", "accessModes": ["ReadWriteMany"]},
        queue={"name": "q" * 63},
        runPolicy={"maxRestarts": 0},
    )
    ref = UpstreamRef(kind="RewardJob", name="n" * 40, uid="u" * 36, digest="sha256:" + "d" * 64)
    refs = [ref.model_copy(update={"uid": f"{number:036}"}) for number in range(upstreams)]
    run = Run(image="i" * 500, upstreams=refs, digest="sha256:" + "d" * 64)
    stored = Stored()
    stored.own(decide(job, stored.status, View(blocker=Blocker("ConfigMapNotFound", "m" * 9999)), now).status)
    stored.own(decide(job, stored.status, View(run=run), now).status)
    stuck = [make_pod(index, "Pending", conditions=[UNSCHEDULABLE | {"message": "w" * 3000}]) for index in range(NODES)]
    stored.own(decide(job, stored.status, View(make_child(0), pods=tuple(stuck)), now).status)
    pods = tuple(make_pod(index) for index in range(NODES))
    stored.own(decide(job, stored.status, View(make_child(0), pods=pods), now).status)
    stored.report(fullest())
    said = stored.status["progress"]
    assert "checkpoints.metrics" in said["cut"]
    assert {"name": "rewards/margins", "value": "-0.123457", "display": "-0.1235"} in said["metrics"]
    assert stored.status["checkpoints"][-1]["step"] == 4, "where the job would go on"
    after = stored.status["evaluation"]["after"]
    assert {"name": "accuracy", "value": "-0.123457"} in after, "what other jobs ask for"
    last = {"reason": "DataFormatError", "message": "é" * 1024, "log": LOG[-2048:], "time": TIME}
    broken = tuple(
        make_pod(index, "Failed", exit_code=10, record={"outcome": "Failed", **last}) for index in range(NODES)
    )
    view = View(make_child(0, "Failed"), pods=broken)
    stored.own(decide(job, stored.status, view, now).status)
    stored.own(decide(job, stored.status, View(pods=broken), now).status)
    ended = stored.status
    assert (ended["phase"], ended["failure"]["reason"]) == ("Failed", "DataFormatError")
    assert ended["failure"]["log"].endswith("the last line")
    assert len(ended["failure"]["log"]) >= 200
    for kind in ("Failed", "Finished", "Succeeded"):
        assert condition(ended, kind)
    assert ended["progress"]["step"] == 7
    assert not ended["progress"].keys() & {"eta", "etaSeconds"}
    again = decide(job, ended, View(pods=broken), now).status
    assert fit(again, owned(ended, MANAGER_PROGRESS)) == owned(ended, MANAGER_STATUS), "and nothing is written again"
    assert without_eta(ended, again) is None


def test_what_jobs_say_every_day_is_left_whole(make_job: Make, make_child: Make, make_pod: Make, now: datetime) -> None:
    job = make_job(runPolicy={"maxRestarts": 0})
    stored = Stored()
    stored.own(decide(job, {}, View(run=Run(image="trainer:1", digest="d" * 71)), now).status)
    pod = make_pod(0)
    stored.own(decide(job, stored.status, View(make_child(0), pods=(pod,)), now).status)
    names = [f"eval_rewards/some_reward_{number}/mean" for number in range(16)]
    many = [{"name": name, "value": "0.123456"} for name in names]
    saved = [{"step": n, "path": f"{'u' * 36}/checkpoint-{n}", "time": TIME, "metrics": many[:4]} for n in range(3)]
    told = {"metrics": many, "checkpoints": saved, "evaluation": {"before": many, "after": many}, "artifacts": []}
    told |= {"evaluationSkipped": None, "trainingWarnings": []}
    stored.report(fullest(activity="training", rewards=[], warnings=["4 of 512 rows were cut"], **told))
    record = {"outcome": "Failed", "reason": "DataFormatError", "message": "row 3 has no prompt", "time": TIME}
    broken = make_pod(0, "Failed", exit_code=10, record={**record, "log": "x" * 2048})
    stored.own(decide(job, stored.status, View(make_child(0, "Failed"), pods=(broken,)), now).status)
    assert stored.status["failure"]["log"] == "x" * 2048
    assert "cut" not in stored.status["progress"]
    assert MARK not in str(stored.status)


def test_texts_that_are_cut_say_so_and_a_log_keeps_its_end() -> None:
    own = {"failure": {"reason": "Unknown", "message": "m" * 1024, "hint": "h", "log": LOG[-2048:]}}
    told = {"waiting": {"reason": "X", "message": "w" * 2048}, **own}
    cut = fit(told, {"progress": {"warnings": ["x" * 9500]}})
    assert cut["waiting"]["message"].startswith("www")
    assert cut["waiting"]["message"].endswith(f" {MARK}")
    assert cut["failure"]["log"].startswith(f"{MARK} ")
    assert cut["failure"]["log"].endswith("the last line")
    assert told["waiting"]["message"] == "w" * 2048, "what was given is left alone"


def test_an_exit_records_report_is_cut_too() -> None:
    record = ExitRecord(outcome="Failed", time=TIME, progress=fullest())
    found = last_words([record], 0, succeeded=False, current={})
    assert found is not None
    assert size(found) <= 7 * 1024
    assert found["progress"]["cut"]
