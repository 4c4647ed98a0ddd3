"""Objects that a job names and that are missing or taken: told within five seconds, and healed without a restart."""

from collections.abc import Callable
from typing import Any

from devcluster.fakenode import FakeNode

SHARED = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}
LEFT = {"trl-operator.io/job-uid": "an-earlier-one"}
TOLD_WITHIN = 5 + 3  # seconds; three of them for kubectl on a busy machine


def accepted(status: dict[str, Any]) -> tuple[str, str, str]:
    found = next((c for c in status.get("conditions", ()) if c["type"] == "Accepted"), None)
    return (found["status"], found["reason"], found["message"]) if found else ("", "", "")


def refused(jobs: Any, name: str, reason: str) -> str:
    """Wait for Accepted=False with this reason; return its message."""
    status = jobs.wait("dpojob", name, f"is refused: {reason}", lambda s: accepted(s)[1] == reason, TOLD_WITHIN)
    assert accepted(status)[0] == "False"
    assert status["phase"] == "Pending"
    assert not [child for child in jobs.list("pytorchjobs") if child["metadata"]["name"].startswith(f"{name}-dpo")]
    return accepted(status)[2]


def claim(name: str, mode: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}},
    }


def left_claim(name: str) -> dict[str, Any]:
    found = claim(name, "ReadWriteOnce")
    return {**found, "metadata": {**found["metadata"], "labels": LEFT}}


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def test_a_missing_config_map_is_told_and_heals(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    jobs.apply(dpo(dataset={"train": {"configMap": {"name": "pairs", "key": "train.jsonl"}}}))
    assert "dataset.train.configMap names ConfigMap pairs" in refused(jobs, "tune", "ConfigMapNotFound")
    jobs.apply(config_map("pairs", other="{}"))
    assert "no key train.jsonl" in refused(jobs, "tune", "ConfigMapKeyNotFound")
    jobs.apply(config_map("pairs", **{"train.jsonl": "{}"}))
    [pod] = node.wait_for_pods(
        1, "tune-dpo-0", timeout=30
    )  # the promise is that the blocker heals, not how fast pods come
    node.run(pod)
    assert accepted(jobs.wait_for_phase("tune", "Running"))[0] == "True"
    assert node.files(pod, "/mnt/train") == {"train.jsonl": "{}"}


def test_what_does_not_go_with_a_default_is_told(operator: Any, jobs: Any, dpo: Callable[..., Any]) -> None:
    jobs.apply(dpo(training={"lrSchedulerArgs": {"minLrRate": 0.1}}))
    message = "spec.training: lrSchedulerArgs are for lrScheduler cosine_with_min_lr and warmup_stable_decay: remove"
    assert refused(jobs, "tune", "InvalidSpec").startswith(message)


def test_a_claim_that_several_nodes_cannot_share_is_told(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    jobs.apply(dpo(numNodes=2, storage={"claimName": "mine"}))
    assert "storage.claimName names PersistentVolumeClaim mine" in refused(
        jobs, "tune", "PersistentVolumeClaimNotFound"
    )
    jobs.apply(claim("mine", "ReadWriteOnce"))
    assert "several nodes need ReadWriteMany" in refused(jobs, "tune", "AccessModeNotShared")
    jobs.apply(dpo("again", numNodes=2, storage={"claimName": "shared"}), claim("shared", "ReadWriteMany"))
    node.wait_for_pods(2, "again-dpo-0")


def test_a_claim_that_an_earlier_job_has_left_must_suit_the_new_one(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    jobs.apply(left_claim("tune-dpo"))
    jobs.apply(dpo(numNodes=2, storage=SHARED))
    assert "several nodes need ReadWriteMany: delete the claim" in refused(jobs, "tune", "AccessModeNotShared")


def test_storage_reuse_decides_about_the_claim_that_an_earlier_job_has_left(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    asked = {
        "fits": {"size": "1Gi"},
        "small": {"size": "2Gi", "reuse": "ifFits"},
        "always": {"size": "2Gi", "reuse": "always"},
        "never": {"size": "1Gi", "reuse": "never"},
    }
    jobs.apply(*(left_claim(f"{name}-dpo") for name in asked))
    jobs.apply(*(dpo(name, storage=storage) for name, storage in asked.items()))
    assert "storage.size is 2Gi, but PersistentVolumeClaim small-dpo of an earlier job has 1Gi: delete the claim" in (
        refused(jobs, "small", "RetainedClaimDiffers")
    )
    message = refused(jobs, "never", "RetainedClaimExists")
    assert "never-dpo of an earlier job is there, with size 1Gi, class none, access modes ReadWriteOnce" in message
    for name in ("fits", "always"):
        node.wait_for_pods(1, f"{name}-dpo-0")
        value, _, message = accepted(jobs.status("dpojob", name))
        assert value == "True"
        assert f"it writes to PersistentVolumeClaim {name}-dpo that an earlier job has left, with size 1Gi" in message
        assert f"storage.size is {asked[name]['size']}" in message
        assert jobs.get("persistentvolumeclaim", f"{name}-dpo")["metadata"]["labels"] == LEFT
    # The remedy.
    jobs.delete("persistentvolumeclaim", "never-dpo")
    # Whoever keeps claims that are in use is not here.
    jobs.patch("persistentvolumeclaim", "never-dpo", {"metadata": {"finalizers": None}})
    node.wait_for_pods(1, "never-dpo-0", timeout=30)
    uid = jobs.get("dpojob", "never")["metadata"]["uid"]
    assert jobs.get("persistentvolumeclaim", "never-dpo")["metadata"]["labels"]["trl-operator.io/job-uid"] == uid
    assert "earlier" not in accepted(jobs.status("dpojob", "never"))[2]


def test_a_name_that_is_taken_is_told_and_the_holder_is_left_alone(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    worker = {"replicas": 1, "restartPolicy": "Never"}
    template = {"spec": {"containers": [{"name": "pytorch", "image": "foreign"}]}}
    foreign = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "tune-dpo-0"},
        "spec": {"pytorchReplicaSpecs": {"Worker": {**worker, "template": template}}},
    }
    jobs.apply(foreign, config_map("second-dpo-0", mine="yes"), claim("third-dpo", "ReadWriteOnce"))
    uid = jobs.get("pytorchjob", "tune-dpo-0")["metadata"]["uid"]
    jobs.apply(dpo(), dpo("second"), dpo("third"))
    for name, holder in (("tune", "pytorchjobs tune-dpo-0"), ("second", "configmaps second-dpo-0")):
        status = jobs.wait("dpojob", name, "is refused", lambda s: accepted(s)[1] == "NameConflict", TOLD_WITHIN)
        assert holder in accepted(status)[2]
    assert "persistentvolumeclaims third-dpo" in refused(jobs, "third", "NameConflict")
    assert jobs.get("pytorchjob", "tune-dpo-0")["metadata"]["uid"] == uid
    assert jobs.get("configmap", "second-dpo-0")["data"] == {"mine": "yes"}
    jobs.delete("pytorchjob", "tune-dpo-0")
    node.wait_for_pods(1, "tune-dpo-0", timeout=30)
    jobs.wait("dpojob", "tune", "is accepted", lambda s: accepted(s)[0] == "True")


def test_a_job_created_again_under_its_name_waits_for_the_old_children(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    jobs.apply(dpo())
    [pod] = node.wait_for_pods(1, "tune-dpo-0")
    node.run(pod)
    jobs.wait_for_phase("tune", "Running")
    old = jobs.get("pytorchjob", "tune-dpo-0")["metadata"]["uid"]
    jobs.delete("dpojob", "tune")
    jobs.apply(dpo())
    status = jobs.wait("dpojob", "tune", "starts anew", lambda s: s.get("workload", {}).get("uid", old) != old, 90)
    assert status["attempt"] == 0
    assert status["restarts"] == 0


def test_too_many_inline_rows_are_told(operator: Any, jobs: Any, dpo: Callable[..., Any]) -> None:
    rows = [{"prompt": "p" * 1000, "chosen": "c", "rejected": "r"}] * 140
    jobs.apply(dpo(dataset={"train": {"inline": rows}}))
    assert "at most 131072" in refused(jobs, "tune", "InlineTooLarge")
