"""Why a job waits: for each cause the right reason with names and numbers, within five seconds of the cluster's
knowing it, in `kubectl get -o wide` and in the conditions."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from webhook import configurations, webhook

from devcluster.controlplane import ControlPlane
from devcluster.errors import DevClusterError
from devcluster.fakenode import FakeNode
from devcluster.waiting import wait_for

Obj = dict[str, Any]
TOLD_WITHIN = 5 + 1  # seconds; Kubernetes writes its times in whole ones

NOT_HELPFUL = "preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."


@dataclass(frozen=True)
class Cause:
    """What a job waits for. `unschedulable`: what the scheduler says; `kubelet`: reason and message of its container;
    `event`: an event about its pod or its claim, by kind, reason and message."""

    job: str
    reason: str
    words: str
    """Names and numbers that the message has."""
    spec: Obj = field(default_factory=dict)
    unschedulable: str = ""
    kubelet: tuple[str, str] | None = None
    event: tuple[str, str, str] | None = None
    kind: str = "DPOJob"
    condition: str = "Running"


def nodes(words: str) -> str:
    return f"0/3 nodes are available: {words}. {NOT_HELPFUL}"


def rewarded_by(name: str) -> Obj:
    rows = {"train": {"inline": [{"prompt": "Where is it?"}] * 8}}
    return {"dataset": rows, "grpo": {"rewards": [{"name": "judge", "rewardModel": {"fromJob": {"name": name}}}]}}


GPUS = {"limits": {"nvidia.com/gpu": 8}}
SECRET = [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}]
UPSTREAM = {"kind": "GRPOJob", "condition": "UpstreamReady"}
CAUSES = (
    Cause(
        "gpus", "Unschedulable", "pod gpus-dpo-0-worker-0 needs nvidia.com/gpu 8: 0/3 nodes are available: 3 Insuff",
        {"resources": GPUS}, unschedulable=nodes("3 Insufficient nvidia.com/gpu"),
    ),
    Cause(
        "tainted", "Unschedulable", "needs a toleration (tolerations: team): 0/3 nodes are available: 3 node(s) had",
        {"tolerations": [{"key": "team", "operator": "Exists"}]},
        unschedulable=nodes("3 node(s) had untolerated taint(s)"),
    ),
    Cause(
        "selective", "Unschedulable", "worker-0 needs pool=h100 (nodeSelector): 0/3 nodes are available: 3 node(s)",
        {"nodeSelector": {"pool": "h100"}}, unschedulable=nodes("3 node(s) didn't match Pod's node affinity/selector"),
    ),
    Cause(
        "unbound", "VolumeNotBound",
        'PersistentVolumeClaim unbound-dpo (7Gi, storageClassName: fast) is Pending: class "fast" not found',
        {"storage": {"size": "7Gi", "storageClassName": "fast"}},
        unschedulable=nodes("pod has unbound immediate PersistentVolumeClaims"),
        event=("PersistentVolumeClaim", "ProvisioningFailed", 'class "fast" not found'),
    ),
    Cause(
        "homeless", "PersistentVolumeClaimNotFound", "names PersistentVolumeClaim nowhere, which does not exist",
        {"storage": {"claimName": "nowhere"}}, condition="Accepted",
    ),
    Cause(
        "rowless", "ConfigMapNotFound", "dataset.train.configMap names ConfigMap rows, which does not exist",
        {"dataset": {"train": {"configMap": {"name": "rows", "key": "train.jsonl"}}}}, condition="Accepted",
    ),
    Cause(
        "unmounted", "VolumeMountFailed",
        'worker-0: MountVolume.SetUp failed for volume "claim-0" (PersistentVolumeClaim unmounted-dpo)',
        event=("Pod", "FailedMount", 'MountVolume.SetUp failed for volume "claim-0" : mount failed: exit status 32'),
    ),
    Cause(
        "offline", "PodSandboxFailed", "pod offline-dpo-0-worker-0: no IP addresses left in 10.244.0.0/24",
        event=("Pod", "FailedCreatePodSandBox", "no IP addresses left in 10.244.0.0/24"),
    ),
    Cause(
        "unpulled", "ImagePullFailed", 'pod unpulled-dpo-0-worker-0: Back-off pulling image "nowhere/no:1"',
        kubelet=("ImagePullBackOff", 'Back-off pulling image "nowhere/no:1"'),
    ),
    Cause(
        "secretless", "SecretNotFound", 'pod secretless-dpo-0-worker-0: secret "hub" not found', {"env": SECRET},
        kubelet=("CreateContainerConfigError", 'secret "hub" not found'),
    ),
    Cause(
        "keyless", "SecretKeyNotFound", "couldn't find key token in Secret", {"env": SECRET},
        kubelet=("CreateContainerConfigError", "couldn't find key token in Secret team/hub"),
    ),
    Cause(
        "crowded", "QuotaExceeded", "exceeded quota: gold, requested: pods=1, used: pods=0, limited: pods=0",
        {"priorityClassName": "gold"},
    ),
    Cause(
        "greedy", "LimitRangeExceeded", "maximum cpu usage per Container is 32, but limit is 48",
        {"resources": {"limits": {"cpu": "48"}}},
    ),
    Cause(
        "unranked", "PriorityClassNotFound", "no PriorityClass with name platinum was found",
        {"priorityClassName": "platinum"},
    ),
    Cause("loose", "PodSecurityDenied", 'violates PodSecurity "restricted:latest": host namespaces (hostNetwork=true)'),
    Cause("barred", "AdmissionDenied", '"pods.example.com" denied the request: barred-dpo-0-worker-0 names no cost'),
    Cause(
        "hooked", "AdmissionDenied",
        'PyTorchJob hooked-dpo-0 could not be created: admission webhook "workloads.example.com" denied the',
    ),
    Cause("stranded", "WebhookUnavailable", 'failed calling webhook "away.example.com"'),
    Cause("orphan", "UpstreamNotFound", "names RewardJob nobody, which does not", rewarded_by("nobody"), **UPSTREAM),
    Cause("early", "UpstreamNotFinished", "names RewardJob judge, which is Running", rewarded_by("judge"), **UPSTREAM),
    Cause("late", "UpstreamFailed", "RewardJob lost, which has ended as Cancelled", rewarded_by("lost"), **UPSTREAM),
    Cause("evicted", "Preempted", "pod evicted-dpo-0-worker-0 had to give way: PreemptionByScheduler"),
)  # fmt: skip
WAITS = {cause.job: cause for cause in CAUSES}


@pytest.fixture
def rules(control_plane: ControlPlane, namespace: str, jobs: Any) -> Iterator[None]:
    """What the cluster has against some of the jobs is in force."""
    named = {"denied": "barred", "workload": "hooked", "mutated": "loose", "away": "stranded"}
    gold = {"scopeName": "PriorityClass", "operator": "In", "values": ["gold"]}
    quota = {"hard": {"pods": "0"}, "scopeSelector": {"matchExpressions": [gold]}}
    maximum = {"limits": [{"type": "Container", "max": {"cpu": "32"}}]}
    priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "gold"}}
    with webhook(control_plane) as address:
        hooks = configurations(control_plane, namespace, address, named)
        control_plane.apply(*hooks, {**priority, "value": 1000})
        control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
        jobs.apply(
            {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "gold"}, "spec": quota},
            {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": maximum},
        )
        wait_for("the quota is in force", lambda: "hard" in jobs.status("resourcequota", "gold"), 30, 0.1)
        wait_for("the webhooks are asked", lambda: is_denied(jobs, "hooked-probe"), 30, 0.1)
        yield
        for hook in hooks:
            control_plane.kubectl("delete", hook["kind"].lower(), namespace)
        control_plane.kubectl("delete", "priorityclass", "gold")


def is_denied(jobs: Any, name: str) -> bool:
    """Whether a workload of this name would be denied."""
    template = {"spec": {"containers": [{"name": "pytorch", "image": "x"}]}}
    worker = {"Worker": {"replicas": 1, "restartPolicy": "Never", "template": template}}
    metadata = {"name": name, "namespace": jobs.namespace}
    made = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": metadata}
    try:
        asked = json.dumps({**made, "spec": {"pytorchReplicaSpecs": worker}})
        jobs.plane.kubectl("create", "--dry-run=server", "--filename=-", stdin=asked)
    except DevClusterError as error:
        return "denied the request" in str(error)
    return False


def judges(dpo: Callable[..., Obj]) -> list[Obj]:
    """The RewardJobs that some wait for."""
    pairs = {"train": {"inline": [{"chosen": "at once", "rejected": "no idea"}] * 4}}
    found = [dpo("judge", dataset=pairs), dpo("lost", dataset=pairs, runPolicy={"cancel": True})]
    return [{**job, "kind": "RewardJob"} for job in found]


def happen(node: FakeNode, jobs: Any) -> None:
    """What becomes of the pods that have a node, as a kubelet or a scheduler tells it, and of claims."""
    [pod] = node.wait_for_pods(1, "judge-rm-0")
    node.run(pod)
    for cause in CAUSES:
        name = f"{cause.job}-dpo-0"
        if cause.kubelet:
            node.wait(node.wait_for_pods(1, name)[0], *cause.kubelet)
        if cause.event:
            kind, reason, message = cause.event
            about = jobs.get(kind, f"{cause.job}-dpo") if kind != "Pod" else node.wait_for_pods(1, name)[0]
            jobs.apply(warning(kind, about["metadata"], reason, message))
    [pod] = node.wait_for_pods(1, "evicted-dpo-0")
    node.run(pod)
    jobs.wait_for_phase("evicted", "Running")
    node.preempt(pod)


def warning(kind: str, about: Obj, reason: str, message: str) -> Obj:
    time = now().strftime("%Y-%m-%dT%H:%M:%SZ")
    involved = {"apiVersion": "v1", "kind": kind, **{name: about[name] for name in ("namespace", "name", "uid")}}
    said = {"type": "Warning", "reason": reason, "message": message, "firstTimestamp": time, "lastTimestamp": time}
    metadata = {"name": f"{about['name']}.1"}
    return {"apiVersion": "v1", "kind": "Event", "metadata": metadata, "involvedObject": involved, **said}


def now() -> datetime:
    return datetime.now(UTC)


class Watcher:
    """Sees when the cluster knew of a cause, and when its job said so."""

    def __init__(self, jobs: Any, node: FakeNode) -> None:
        self._jobs = jobs
        self._node = node
        self._applied = now()
        self._told: dict[str, datetime] = {}
        self.statuses: dict[str, Obj] = {}

    def missing(self) -> dict[str, Obj]:
        """Look, and return the statuses of those that have not said why they wait."""
        found = {obj["metadata"]["name"]: obj.get("status", {}) for obj in self._jobs.list("dpojobs,grpojobs")}
        for name in found.keys() - self._told.keys():
            said = found[name].get("failure") or found[name].get("waiting") or {}
            if said.get("reason") == WAITS[name].reason and WAITS[name].words in said["message"]:
                self._told[name], self.statuses[name] = now(), found[name]
        return {name: found[name] for name in found.keys() - self._told.keys()}

    def latencies(self) -> dict[str, float]:
        """Return the seconds between the two, by job. What no event and no pod tells was known from the beginning."""
        events, pods = self._jobs.list("events"), [*self._jobs.list("pods"), *self._node.gone()]
        times = [(e["involvedObject"]["name"], e["firstTimestamp"]) for e in events if e["type"] == "Warning"]
        times += [(p["metadata"]["name"], c["lastTransitionTime"]) for p in pods for c in p["status"]["conditions"]]
        found = {}
        for job, told in self._told.items():
            place = "judge-" if job == "early" else f"{job}-"
            known = [datetime.fromisoformat(time) for name, time in times if name.startswith(place)]
            found[job] = (told - max(time for time in [self._applied, *known] if time <= told)).total_seconds()
        return found


def test_each_cause_of_waiting_is_told_in_five_seconds_with_names_and_numbers(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Obj], rules: None
) -> None:
    for cause in CAUSES:
        if cause.unschedulable:
            node.cordon(cause.unschedulable, f"{cause.job}-dpo-0")
    made = [{**dpo(cause.job, **cause.spec), "kind": cause.kind} for cause in CAUSES]
    jobs.apply(*made, *judges(dpo))
    watcher = Watcher(jobs, node)
    with ThreadPoolExecutor(1) as beside:
        happened = beside.submit(happen, node, jobs)
        deadline = time.monotonic() + 60
        while missing := watcher.missing():
            assert time.monotonic() < deadline, missing
        happened.result()
    late = {job: seconds for job, seconds in watcher.latencies().items() if seconds > TOLD_WITHIN}
    assert not late
    for name, status in watcher.statuses.items():
        [condition] = [c for c in status["conditions"] if c["type"] == WAITS[name].condition]
        assert (condition["status"], condition["reason"]) == ("False", WAITS[name].reason)
        assert WAITS[name].words in condition["message"]
    shown = jobs.plane.kubectl("get", "dpojobs,grpojobs", f"--namespace={jobs.namespace}", "--output=wide")
    print(shown)
    lines = {words[0].partition("/")[2]: line for line in shown.splitlines() if (words := line.split())}
    for cause in CAUSES:
        if cause.reason != "Preempted":  # its next attempt has begun
            assert f"{cause.reason} " in lines[cause.job]
            assert cause.words in lines[cause.job]


def test_what_a_pod_mounts_is_made_again_when_somebody_deletes_it_before_the_mount(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Obj]
) -> None:
    jobs.apply(dpo())
    [pod] = node.wait_for_pods(1, "tune-dpo-0")
    jobs.wait_for_phase("tune", "Starting")
    made = {name: jobs.get("configmap", name)["data"] for name in ("tune-dpo", "tune-dpo-0")}
    for name in made:
        jobs.delete("configmap", name)
    for name in reversed(made):
        words = f'MountVolume.SetUp failed for volume "job" : configmap "{name}" not found'
        jobs.apply(warning("Pod", pod["metadata"], "FailedMount", words))
    wait_for("both are there again", lambda: all(jobs.get("configmap", name) for name in made), 30)
    assert {name: jobs.get("configmap", name)["data"] for name in made} == made
    node.run(pod)
    jobs.wait_for_phase("tune", "Running")
