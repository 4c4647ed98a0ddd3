"""Progress reports: who may send them, and what becomes of them."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from reporting import Trainer, report

from devcluster.fakenode import FakeNode


@pytest.fixture
def pods(operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]) -> dict[str, Any]:
    """The pod of a running job `tune`, and that of another one."""
    jobs.apply(dpo(training={"learningRate": 0.1}), dpo("other"))
    found = {}
    for name in ("tune", "other"):
        [found[name]] = node.wait_for_pods(1, f"{name}-dpo-0")
        node.run(found[name])
        jobs.wait_for_phase(name, "Running")
    return found


def test_a_report_of_the_jobs_own_pod_reaches_its_status(pods: dict[str, Any], jobs: Any, node: FakeNode) -> None:
    trainer = Trainer(node, pods["tune"])
    metrics = [
        {"name": "loss", "value": "0.4321", "unit": "of a newer trainer"},
        {"name": "rewards/margins", "value": "1.56789"},
        {"name": "grad_norm", "value": "NaN"},
        {"name": "bad\u001b[31m", "value": "1"},
    ]
    fields = {"etaSeconds": 4800, "tokensPerSecond": 1234.5678, "trainableParameters": 7, "metrics": metrics}
    fields["evaluationSkipped"] = {"reason": "HeldOutRowsDropped", "message": "2 of 2 held-out rows are dropped"}
    fields["trainingWarnings"] = [{"reason": "UnstableLoss", "message": "at step 9 the loss is 7", "hint": "Lower it."}]
    status, answer = trainer.post(report(12, **fields))
    assert (status, json.loads(answer)["accepted"]) == (200, True)
    found = jobs.wait("dpojob", "tune", "shows the report", lambda s: "progress" in s, 20)
    progress = found["progress"]
    assert progress["display"] == "12/40"
    assert (progress["eta"], progress["percentage"], progress["loss"]) == ("1h20m", 30, "0.4321")
    shown = {"name": "rewards/margins", "value": "1.56789", "display": "1.568"}
    assert progress["metrics"] == [{"name": "loss", "value": "0.4321"}, shown]
    assert "gradNorm" not in progress
    assert found["effective"]["trainableParameters"] == 7
    assert found["effective"]["worldSize"] == 1
    [line] = jobs.plane.kubectl("get", "dpojob", "tune", f"--namespace={jobs.namespace}", "--no-headers").splitlines()
    assert line.split()[:7] == ["tune", "Running", "12/40", "0.4321", "1.568", "1h20m", "0"]
    # As an operator of before has written it.
    patch = {"status": {"progress": {"metrics": [{"name": "rewards/margins", "value": "1.56789"}]}}}
    where = (f"--namespace={jobs.namespace}", "--subresource=status", "--type=merge", f"--patch={json.dumps(patch)}")
    jobs.plane.kubectl("patch", "dpojob", "tune", *where)
    assert " 1.56789 " in jobs.plane.kubectl("get", "dpojob", "tune", f"--namespace={jobs.namespace}", "--no-headers")

    def said(status: Any) -> list[Any]:
        return [found for found in status["conditions"] if found["type"] == "EvaluationSkipped"]

    [condition] = said(jobs.wait("dpojob", "tune", "says that nothing is evaluated", said, 20))
    assert (condition["status"], condition["reason"]) == ("True", "HeldOutRowsDropped")
    assert condition["message"] == "2 of 2 held-out rows are dropped"

    # Of the spec and of the metrics, by two managers in one list.
    warnings = {warning["reason"]: warning for warning in jobs.status("dpojob", "tune")["warnings"]}
    assert set(warnings) == {"UnusualLearningRate", "UnstableLoss"}
    assert warnings["UnstableLoss"]["message"] == "at step 9 the loss is 7"
    shown = jobs.plane.kubectl("describe", "dpojob", "tune", f"--namespace={jobs.namespace}")
    assert "a DPOJob with peft.method lora usually takes 1e-06 to 0.0001" in shown
    assert re.search(r"Hint: +Lower it\.\n", shown)


def test_only_the_bound_token_of_a_pod_of_this_job_is_accepted(
    pods: dict[str, Any], operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    trainer, other = Trainer(node, pods["tune"]), Trainer(node, pods["other"])
    assert trainer.post(report(1))[0] == 200
    assert trainer.post(report(2), token=other.token)[0] == 401
    assert trainer.post(report(2), token=node.token(pods["tune"]))[0] == 401
    assert trainer.post(report(2), token="nonsense")[0] == 401
    uid = jobs.get("dpojob", "tune")["metadata"]["uid"]
    audience = f"trl-operator.io/v1alpha1/namespaces/{jobs.namespace}/dpojobs/tune/{uid}"
    unbound = jobs.plane.kubectl(
        "create", "token", "default", f"--namespace={jobs.namespace}", f"--audience={audience}"
    ).strip()
    assert trainer.post(report(2), token=unbound)[0] == 401
    assert trainer.post(report(2), token=node.token(pods["other"], audience))[0] == 403
    assert trainer.post(report(2), token=node.token(pods["tune"], audience))[0] == 200


def test_a_pod_of_another_namespace_may_not_report_whatever_its_labels_say(
    pods: dict[str, Any], jobs: Any, node: FakeNode, other_namespace: str
) -> None:
    uid = jobs.get("dpojob", "tune")["metadata"]["uid"]
    audience = f"trl-operator.io/v1alpha1/namespaces/{jobs.namespace}/dpojobs/tune/{uid}"
    metadata = {"name": "mallory", "namespace": other_namespace, "labels": pods["tune"]["metadata"]["labels"]}
    container = {"name": "pytorch", "image": "foreign"}
    jobs.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}})
    text = jobs.plane.kubectl("get", "pod", "mallory", f"--namespace={other_namespace}", "--output=json")
    mallory = json.loads(text)
    trainer = Trainer(node, pods["tune"])
    status, answer = trainer.post(report(1), token=node.token(mallory, audience))
    assert (status, answer) == (403, "the token's pod does not belong to the job's current attempt")
    assert trainer.post(report(1))[0] == 200


def test_a_pod_of_an_earlier_attempt_may_not_report(
    pods: dict[str, Any], jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    trainer = Trainer(node, pods["tune"])
    assert trainer.post(report(30))[0] == 200
    node.fail(pods["tune"], 1)
    [pod] = node.wait_for_pods(1, "tune-dpo-1", timeout=90)
    node.run(pod)
    jobs.wait("dpojob", "tune", "runs again", lambda s: s.get("phase") == "Running" and s["attempt"] == 1)
    assert trainer.post(report(31))[0] in (401, 403)
    again = Trainer(node, pod)
    assert json.loads(again.post(report(31))[1])["accepted"] is False
    assert json.loads(again.post(report(3, attempt=1))[1])["accepted"] is True
    status = jobs.wait("dpojob", "tune", "shows it", lambda s: s.get("progress", {}).get("attempt") == 1)
    assert status["progress"]["step"] == 3


def test_what_is_stale_malformed_or_too_big_changes_nothing(pods: dict[str, Any], jobs: Any, node: FakeNode) -> None:
    trainer = Trainer(node, pods["tune"])
    assert json.loads(trainer.post(report(10, 5))[1])["accepted"] is True
    jobs.wait("dpojob", "tune", "shows it", lambda s: s.get("progress", {}).get("step") == 10)
    times = [report(11, lastUpdateTime=text) for text in ("noon", "2026-11-21 06:11:00Z", "20261121T061100Z")]
    for stale in (report(9), report(10, 5), report(10, 4), report(11, attempt=7), *times):
        status, answer = trainer.post(stale)
        assert (status, json.loads(answer)["accepted"]) == (200, False), stale
    negative, words = ({**report(11), "trl": {**report(11)["trl"], "step": step}} for step in (-1, "many"))
    huge = report(11, etaSeconds=2**31)
    for bad in (b"", b"nonsense", b"[]", b"{}", negative, words, huge):
        assert trainer.post(bad)[0] == 400, bad
    assert trainer.post(b" " * 70_000)[0] == 413
    assert json.loads(trainer.post(report(10, 6, activity="evaluating"))[1])["accepted"] is True
    status = jobs.wait("dpojob", "tune", "shows it", lambda s: s["progress"]["activity"] == "evaluating")
    assert status["progress"]["step"] == 10


def test_a_stock_transformers_script_reports_without_a_line_of_code(
    pods: dict[str, Any], jobs: Any, node: FakeNode
) -> None:
    metrics = {"current_step": 5, "total_steps": 20, "current_epoch": 0.25, "loss": 1.25}
    body = {
        "trainerStatus": {
            "progressPercentage": 25,
            "estimatedRemainingSeconds": 90,
            "lastUpdatedTime": "2026-11-21T06:00:00Z",
            "metrics": [{"name": name, "value": str(value)} for name, value in metrics.items()],
        }
    }
    status, answer = Trainer(node, pods["tune"]).post(body)
    assert (status, json.loads(answer)["accepted"]) == (200, True)
    progress = jobs.wait("dpojob", "tune", "shows it", lambda s: "progress" in s)["progress"]
    assert (progress["display"], progress["eta"], progress["percentage"]) == ("5/20", "1m30s", 25)


def test_a_flood_of_reports_makes_few_writes(
    pods: dict[str, Any], operator: Any, jobs: Any, node: FakeNode, control_plane: Any
) -> None:
    trainer = Trainer(node, pods["tune"])

    def writes() -> int:
        entries = control_plane.audit(operator.receiver.user)
        return sum(
            entry["verb"] == "patch"
            and entry["objectRef"].get("subresource") == "status"
            and entry["objectRef"]["namespace"] == jobs.namespace
            and entry["objectRef"]["name"] == "tune"
            for entry in entries
        )

    before, began = writes(), time.monotonic()
    for step in range(1, 41):
        assert trainer.post(report(step))[0] == 200
    jobs.wait("dpojob", "tune", "shows the last", lambda s: s.get("progress", {}).get("step") == 40)
    found, seconds = writes() - before, time.monotonic() - began
    assert found <= seconds + 2, "one write a second is allowed in this test"
    assert found < 40


def test_the_last_words_of_a_pod_need_no_receiver(
    pods: dict[str, Any], jobs: Any, node: FakeNode, record: Callable[..., str]
) -> None:
    progress = report(40, evaluation={"after": [{"name": "accuracy", "value": "0.97"}]})["trl"]
    node.succeed(pods["tune"], record(progress=progress))
    status = jobs.wait_for_phase("tune", "Succeeded")
    assert (status["progress"]["display"], status["progress"]["percentage"]) == ("40/40", 100)
    assert status["evaluation"]["after"] == [{"name": "accuracy", "value": "0.97"}]


def test_a_job_ends_at_100_percent_though_its_last_report_is_younger_than_its_record(
    pods: dict[str, Any], jobs: Any, node: FakeNode, record: Callable[..., str]
) -> None:
    trainer = Trainer(node, pods["tune"])
    message = record(progress=report(40, 1)["trl"])
    assert trainer.post(report(40, 2, etaSeconds=9))[0] == 200
    jobs.wait("dpojob", "tune", "shows the report", lambda s: s.get("progress", {}).get("percentage") == 99)
    # This one waits for its turn when the job ends.
    assert trainer.post(report(40, 3, etaSeconds=9))[0] == 200
    node.succeed(pods["tune"], message)
    jobs.wait_for_phase("tune", "Succeeded")
    # A report of the other job goes the same way later: by then the waiting one has been dealt with.
    other = Trainer(node, pods["other"])
    for step in (1, 2):
        assert other.post(report(step))[0] == 200
        jobs.wait("dpojob", "other", "shows it", lambda s, step=step: s.get("progress", {}).get("step") == step)
    progress = jobs.status("dpojob", "tune")["progress"]
    assert (progress["display"], progress["percentage"], progress.get("eta")) == ("40/40", 100, None)


def test_a_report_never_reaches_another_job_of_the_same_name(
    pods: dict[str, Any], operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    trainer = Trainer(node, pods["tune"])
    assert trainer.post(report(1))[0] == 200
    jobs.wait("dpojob", "tune", "shows it", lambda s: "progress" in s)
    # The report waits for its turn when the job is replaced.
    assert json.loads(trainer.post(report(2))[1])["accepted"] is True
    jobs.delete("dpojob", "tune")
    jobs.apply(dpo(runPolicy={"suspend": True}))
    jobs.wait_for_phase("tune", "Suspended")
    # A report of the other job goes the same way later: by then the first one has been dealt with.
    other = Trainer(node, pods["other"])
    for step in (1, 2):
        assert other.post(report(step))[0] == 200
        jobs.wait("dpojob", "other", "shows it", lambda s, step=step: s.get("progress", {}).get("step") == step)
    assert "progress" not in jobs.status("dpojob", "tune")
