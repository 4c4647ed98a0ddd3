"""Each transition is told once, whoever dies meanwhile."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from reporting import Trainer, report

from devcluster.fakenode import Exit, FakeNode
from devcluster.waiting import wait_for

ONCE = {
    "FirstCheckpoint": "Normal", "Suspending": "Normal", "Suspended": "Normal", "Resumed": "Normal",
    "AttemptFailed": "Warning", "LastCheckpoint": "Normal", "Succeeded": "Normal",
}  # fmt: skip
EACH_ATTEMPT = ("AttemptStarted", "Running")


def saved(*steps: int) -> dict[str, Any]:
    """A report of just now with these checkpoints: an old one would be told as silence."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    found = [{"step": step, "path": f"u/checkpoint-{step}", "time": now} for step in steps]
    return report(steps[-1], checkpoints=found, lastUpdateTime=now)


def test_each_transition_is_told_once_though_operator_and_receiver_are_killed_at_each(
    quick_operator: Any,
    jobs: Any,
    node: FakeNode,
    dpo: Callable[..., Any],
    record: Callable[..., str],
) -> None:
    operator = quick_operator
    node.sigterm = Exit(143, record("Preempted", reason="Preempted"))
    jobs.apply(dpo())
    assert jobs.status("dpojob", "tune")["observedGeneration"] == -1, "no operator has looked at it"
    operator.start()
    operator.receiver.start()

    def told() -> Counter[str]:
        found = [event for event in jobs.list("events") if event["involvedObject"]["kind"] == "DPOJob"]
        odd = [event for event in found if ONCE.get(event["reason"], "Normal") != event["type"]]
        assert not odd, odd
        return Counter(event["reason"] for event in found)

    def killed_after(reason: str, times: int = 1) -> None:
        wait_for(f"{reason} is told", lambda: told()[reason] == times, 30, 0.2)
        for process in (operator, operator.receiver):
            process.kill()
            process.start()
        wait_for("it leads", operator.leads, 30, 0.2)

    def runs(attempt: int) -> Any:
        [pod] = node.wait_for_pods(1, f"tune-dpo-{attempt}", timeout=60)
        node.run(pod)
        killed_after("Running", attempt + 1)
        return pod

    trainer = Trainer(node, runs(0))
    wait_for("a report is taken", lambda: trainer.post(saved(5))[0] == 200, 20)
    killed_after("FirstCheckpoint")
    wait_for("a report is taken", lambda: trainer.post(saved(5, 9))[0] == 200, 20)
    jobs.wait("dpojob", "tune", "shows it", lambda status: len(status["checkpoints"]) == 2)
    jobs.patch("dpojob", "tune", {"spec": {"runPolicy": {"suspend": True}}})
    killed_after("Suspended")
    jobs.patch("dpojob", "tune", {"spec": {"runPolicy": {"suspend": False}}})
    node.fail(runs(1), 1)
    killed_after("AttemptFailed")
    node.succeed(runs(2), record(attempt=2))
    killed_after("Succeeded")
    # A job that is new is looked at after those that were there at the start.
    jobs.apply(dpo("other"))
    node.wait_for_pods(1, "other-dpo-0")
    mine = [event for event in jobs.list("events") if event["involvedObject"]["name"] == "tune"]
    assert Counter(event["reason"] for event in mine) == dict.fromkeys(ONCE, 1) | dict.fromkeys(EACH_ATTEMPT, 3)
    messages = {event["reason"]: event["message"] for event in mine}
    assert messages["AttemptFailed"].endswith("attempt 2 follows, from the checkpoint of step 9")
    assert messages["LastCheckpoint"] == "the checkpoint of step 9 is in u/checkpoint-9"
