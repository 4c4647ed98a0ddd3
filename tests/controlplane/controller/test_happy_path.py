"""A job from apply to Succeeded."""

from collections.abc import Callable
from typing import Any

from devcluster.fakenode import FakeNode

WRITES = {"create", "update", "patch", "delete"}


def test_a_job_of_two_nodes_runs_and_succeeds(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], record: Callable[..., str]
) -> None:
    jobs.apply(dpo(numNodes=2, storage={"size": "1Gi", "accessModes": ["ReadWriteMany"]}))
    pods = node.wait_for_pods(2, "tune-dpo-0")
    jobs.wait_for_phase("tune", "Starting")
    for pod in pods:
        node.run(pod)
    status = jobs.wait_for_phase("tune", "Running")
    assert status["attempt"] == 0
    assert status["pytorchJob"]["name"] == "tune-dpo-0"
    assert status["effective"]["worldSize"] == 2
    artifact = {"type": "model", "uri": "u/final", "digest": "sha256:abc"}
    node.succeed(pods[0], record(artifacts=[artifact]))
    node.succeed(pods[1], record())
    jobs.plane.kubectl(
        "wait", "--for=condition=Succeeded", "dpojob/tune", f"--namespace={jobs.namespace}", "--timeout=60s"
    )
    status = jobs.status("dpojob", "tune")
    assert status["phase"] == "Succeeded"
    assert status["artifacts"] == [artifact]
    assert status.get("restarts") == 0
    assert status["completionTime"]
    assert [c["type"] for c in status["conditions"]] == ["Accepted", "Running", "Succeeded"]
