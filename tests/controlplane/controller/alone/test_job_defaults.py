"""jobDefaults: which jobs have them, that a job's own word wins, and that a job keeps those that it began with."""

import json
from collections.abc import Callable
from typing import Any

from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode
from devcluster.waiting import wait_for

Obj = dict[str, Any]

GOLD = {"key": "gold", "operator": "Exists", "effect": "NoSchedule"}


def variables(pod: Obj) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}


def template(jobs: Any, name: str) -> Obj:
    found: Obj = jobs.get("pytorchjob", name)["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    return found


def test_jobs_have_the_defaults_of_their_namespace_kind_and_labels_and_keep_them(
    control_plane: ControlPlane,
    install_chart: Callable[..., None],
    new_operator: Callable[..., Any],
    namespace: str,
    other_namespace: str,
    jobs: Any,
    node: FakeNode,
    dpo: Callable[..., Obj],
    record: Callable[..., str],
) -> None:
    both = f"{namespace},{other_namespace}"
    install_chart(control_plane, namespace, f"scope.namespaces={{{both}}}")
    hub = [{"name": "HF_ENDPOINT", "value": "https://hub.example.com"}]
    shared = {"storageClassName": "fast", "accessModes": ["ReadWriteMany"]}
    team = {"nodeSelector": {"pool": "a"}, "storage": shared, "pod": {"labels": {"cost": "7"}}}
    sets: list[Obj] = [
        {"name": "all", "spec": {"env": hub, "imagePullSecrets": [{"name": "registry"}]}},
        {"name": "sft", "kinds": ["SFTJob"], "spec": {"runPolicy": {"ttlSecondsAfterFinished": 0}}},
        {"name": "gold", "selector": {"matchLabels": {"tier": "gold"}}, "spec": {"tolerations": [GOLD]}},
        {"name": "team", "namespaces": [namespace], "spec": team},
    ]
    first = new_operator("first", WATCH_NAMESPACES=both, JOB_DEFAULTS=json.dumps(sets))
    first.start()

    elsewhere = type(jobs)(control_plane, other_namespace)
    sft = dpo("sft", dataset={"train": {"inline": [{"text": "a"}]}}) | {"kind": "SFTJob"}
    sft["metadata"]["labels"] = {"tier": "gold"}
    own_env = [{"name": "HF_ENDPOINT", "value": "https://mine.example.com"}]
    jobs.apply(dpo("plain", numNodes=2), dpo("own", nodeSelector={"pool": "mine"}, env=own_env), sft)
    elsewhere.apply(dpo("plain"), dpo("gang", numNodes=2))

    pods = node.wait_for_pods(2, "plain-dpo-0")
    spec = pods[0]["spec"]
    assert spec["nodeSelector"] == {"pool": "a"}
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert variables(spec)["HF_ENDPOINT"] == "https://hub.example.com"
    assert pods[0]["metadata"]["labels"]["cost"] == "7"
    claim = jobs.get("persistentvolumeclaim", "plain-dpo")["spec"]
    assert (claim["storageClassName"], claim["accessModes"]) == ("fast", ["ReadWriteMany"])
    told = jobs.status("dpojob", "plain")["defaults"]
    fields = ["nodeSelector", "pod.labels", "storage.accessModes", "storage.storageClassName"]
    wanted = [{"name": "all", "fields": ["env", "imagePullSecrets"]}, {"name": "team", "fields": fields}]
    assert told == {"sets": wanted}
    resolved = json.loads(jobs.get("configmap", "plain-dpo")["data"]["resolved.json"])
    assert resolved["spec"] == {**sets[0]["spec"], **team}
    assert resolved["origins"] == {
        "env[HF_ENDPOINT]": "all", "imagePullSecrets[registry]": "all", "nodeSelector[pool]": "team",
        "storage.storageClassName": "team", "storage.accessModes": "team", "pod.labels[cost]": "team",
    }  # fmt: skip

    [own] = node.wait_for_pods(1, "own-dpo-0")
    assert own["spec"]["nodeSelector"] == {"pool": "mine"}
    assert variables(own["spec"])["HF_ENDPOINT"] == "https://mine.example.com"
    [golden] = node.wait_for_pods(1, "sft-sft-0")
    assert GOLD in golden["spec"]["tolerations"]
    assert GOLD not in spec["tolerations"]

    wait_for("the other namespace's job begins", lambda: elsewhere.get("pytorchjob", "plain-dpo-0") is not None, 30)
    other = template(elsewhere, "plain-dpo-0")
    assert "nodeSelector" not in other
    assert variables(other)["HF_ENDPOINT"] == "https://hub.example.com"
    says = elsewhere.wait("dpojob", "gang", "waits", lambda status: "waiting" in status, 30)["waiting"]["message"]
    assert says == "spec.storage: several nodes need storage.accessModes with ReadWriteMany"

    node.run(golden)
    jobs.wait_for_phase("sft", "Running", "sftjob")
    node.succeed(golden, record())
    wait_for("the finished SFTJob is deleted", lambda: jobs.get("sftjob", "sft") is None, 30)

    for pod in pods:
        node.run(pod)
    jobs.wait_for_phase("plain", "Running")
    before = jobs.get("pytorchjob", "plain-dpo-0")["metadata"]["uid"]
    assert first.stop() == 0
    edited = [{"name": "all", "spec": {"nodeSelector": {"pool": "b"}, "tolerations": [GOLD]}}]
    second = new_operator("second", WATCH_NAMESPACES=both, JOB_DEFAULTS=json.dumps(edited))
    second.start()
    jobs.apply(dpo("late"))
    [late] = node.wait_for_pods(1, "late-dpo-0")
    assert late["spec"]["nodeSelector"] == {"pool": "b"}
    status = jobs.status("dpojob", "plain")
    assert (status["phase"], status["restarts"], status["workload"]["uid"]) == ("Running", 0, before)

    jobs.patch("dpojob", "plain", {"spec": {"runPolicy": {"suspend": True}}})
    jobs.wait_for_phase("plain", "Suspended")
    jobs.patch("dpojob", "plain", {"spec": {"runPolicy": {"suspend": False}}})
    again = node.wait_for_pods(2, "plain-dpo-1")[0]["spec"]
    assert again["nodeSelector"] == {"pool": "a"}
    assert variables(again)["HF_ENDPOINT"] == "https://hub.example.com"
    assert GOLD not in again["tolerations"]
    assert jobs.status("dpojob", "plain")["defaults"] == told
    assert second.stop() == 0
