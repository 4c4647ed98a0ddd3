"""A node without a kubelet: the test says what becomes of its pods, and writes it as a scheduler and kubelet would."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

import urllib3
from kubernetes import client, config, watch

from devcluster import podstatus
from devcluster.podstatus import Pod
from devcluster.waiting import wait_for

AGAIN = (410, 429, 500, 503, 504)  # answers after which the pods are listed again: the API server restarts
STRATEGIC = "application/strategic-merge-patch+json"
CAPACITY = {"cpu": "64", "memory": "512Gi", "pods": "2000", "nvidia.com/gpu": "64"}


@dataclass(frozen=True)
class Exit:
    """How a container answers SIGTERM: with which code and termination message, and how long it takes."""

    code: int = 143
    message: str = ""
    after_seconds: float = 0.0


class FakeNode:
    """A context manager: inside it every pending pod of `namespace` (None: of all) is bound to this node at once.

    Then the test says what happens to it: `run`, `succeed`, `fail` and so on, each with a pod as the API server wrote
    it. Such a call raises ApiException 404, 409 or 422 when that very pod is gone. A deleted pod ends by itself as
    `sigterm` says. With a `policy` the node calls it for every change of a pod that is bound and not being deleted:
    `policy(node, pod)` may call the same methods. What goes wrong there is raised by `wait_for_pods` and by the end of
    the context.
    """

    def __init__(
        self,
        kubeconfig: Path,
        name: str = "node-0",
        namespace: str | None = None,
        policy: Callable[["FakeNode", Pod], None] | None = None,
    ) -> None:
        self.name = name
        self.policy = policy
        self.sigterm = Exit()
        self._core = core = client.CoreV1Api(config.new_client_from_config(str(kubeconfig)))
        self._list = partial(core.list_namespaced_pod, namespace) if namespace else core.list_pod_for_all_namespaces
        self._watch = watch.Watch()
        self._pods: dict[str, Pod] = {}  # by uid, as `_gone`
        self._gone: dict[str, Pod] = {}
        self._timers: dict[str, threading.Timer] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._lost = False
        self._unschedulable = ""
        self._unschedulable_jobs: dict[str | None, str] = {}
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    def __enter__(self) -> Self:
        try:
            self._core.create_node({"metadata": {"name": self.name}}, _preload_content=False)
        except client.ApiException as error:
            if error.status != 409:  # the node was here before
                raise
        self._write_node("True", "KubeletReady")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for timer in list(self._timers.values()):
            timer.cancel()
        while self._thread.is_alive():  # it may be between two watches
            self._watch.stop()
            self._thread.join(0.1)
        self._core.api_client.close()
        self._raise_error()

    # -- the pods of this node

    def pods(self, job: str | None = None, phase: str | None = None) -> list[Pod]:
        """The pods bound to this node, by name; only those of a PyTorchJob or TrainJob, only those in a phase."""
        with self._lock:
            return podstatus.select(self._pods.values(), self.name, job, phase)

    def wait_for_pods(
        self, count: int, job: str | None = None, phase: str | None = None, timeout: float = 60
    ) -> list[Pod]:
        """`pods(job, phase)` once they are exactly `count`."""

        def arrived() -> bool:
            self._raise_error()
            return len(self.pods(job, phase)) == count

        wait_for(f"{count} pods of {job or 'any job'} in phase {phase or 'any'} on {self.name}", arrived, timeout, 0.02)
        return self.pods(job, phase)

    def gone(self, job: str | None = None) -> list[Pod]:
        """The pods of this node that were deleted, by name, as they were at the very end."""
        with self._lock:
            return podstatus.select(self._gone.values(), self.name, job, None)

    # -- what a kubelet does

    def run(self, pod: Pod) -> None:
        """All containers have started and are ready."""
        self._patch(pod, podstatus.running(pod))

    def succeed(self, pod: Pod, message: str = "") -> None:
        """All containers have ended with 0; `message` is their termination message."""
        self._patch(pod, podstatus.ended(self._latest(pod), 0, "Completed", message))

    def fail(self, pod: Pod, exit_code: int = 1, reason: str = "Error", message: str = "") -> None:
        """All containers have ended with `exit_code`, not 0; `message` is their termination message."""
        self._patch(pod, podstatus.ended(self._latest(pod), exit_code, reason, message))

    def oom_kill(self, pod: Pod) -> None:
        """The kernel has killed the containers at their memory limit."""
        self.fail(pod, 137, "OOMKilled")

    def evict(self, pod: Pod, message: str, own_fault: bool = False) -> None:
        """The kubelet has evicted the pod for a reason that `message` gives; `own_fault`: over a limit of its own."""
        self._patch(pod, podstatus.evicted(self._latest(pod), message, own_fault))

    def wait(self, pod: Pod, reason: str, message: str = "") -> None:
        """No container can start: reason ImagePullBackOff, CreateContainerConfigError and the like."""
        self._patch(pod, podstatus.waiting(pod, reason, message))

    def files(self, pod: Pod, mount_path: str) -> dict[str, str]:
        """What the first container reads in the ConfigMap or projected volume mounted there: file name -> content.

        A service-account token is minted as its projection asks for it, bound to this pod.
        """
        [mount] = [m for m in pod["spec"]["containers"][0]["volumeMounts"] if m["mountPath"] == mount_path]
        [volume] = [v for v in pod["spec"]["volumes"] if v["name"] == mount["name"]]
        files: dict[str, str] = {}
        for source in volume["projected"]["sources"] if "projected" in volume else [volume]:
            if token := source.get("serviceAccountToken"):
                files[token["path"]] = self.token(pod, token.get("audience"), token["expirationSeconds"])
            elif wanted := source.get("configMap"):
                data = self._config_map(pod, wanted["name"])
                items = wanted.get("items") or [{"key": key, "path": key} for key in data]
                files |= {item["path"]: data[item["key"]] for item in items}
        return files

    def token(self, pod: Pod, audience: str | None = None, expiration_seconds: int = 3600) -> str:
        """A token of the pod's ServiceAccount that is bound to the pod, for `audience` (None: the API server)."""
        meta = pod["metadata"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
        spec = {
            "boundObjectRef": bound,
            "expirationSeconds": expiration_seconds,
            "audiences": [audience] if audience else [],
        }
        answer = self._core.create_namespaced_service_account_token(
            pod["spec"]["serviceAccountName"], meta["namespace"], {"spec": spec}, _preload_content=False
        )
        return str(json.loads(answer.data)["status"]["token"])

    # -- what happens to a pod or the node from outside

    def preempt(self, pod: Pod) -> None:
        """The scheduler has chosen the pod as a victim: it is told to end."""
        message = f"{pod['spec'].get('schedulerName')}: preempting to accommodate a higher priority pod"
        self._disrupt(pod, "PreemptionByScheduler", message)

    def drain(self, pod: Pod) -> None:
        """The pod is evicted through the Eviction API, as `kubectl drain` does."""
        meta = pod["metadata"]
        body = {"metadata": {"name": meta["name"]}, "deleteOptions": {"preconditions": {"uid": meta["uid"]}}}
        self._core.create_namespaced_pod_eviction(meta["name"], meta["namespace"], body, _preload_content=False)

    def lose(self) -> None:
        """The kubelet is silent from now on: its pods are told to end, and stay, Running and terminating."""
        self._lost = True
        self._write_node("Unknown", "NodeStatusUnknown")
        for pod in self.pods():
            if pod["status"]["phase"] in ("Pending", "Running"):
                self._disrupt(pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")

    def recover(self) -> None:
        """The kubelet is back; pods that were told to end meanwhile do."""
        self._lost = False
        self._write_node("True", "KubeletReady")
        self._sync_all()

    def cordon(self, message: str, job: str | None = None) -> None:
        """New pods stay pending, with this as the scheduler's message ("0/1 nodes are available: ..."); only those of a
        PyTorchJob."""
        if job is None:
            self._unschedulable = message
        else:
            self._unschedulable_jobs[job] = message

    def uncordon(self) -> None:
        """The node takes pods again, those that wait too."""
        self._unschedulable = ""
        self._unschedulable_jobs = {}
        self._sync_all()

    def place(self, pod: Pod, since: datetime) -> None:
        """The scheduler has had room for this pod since then, though the node is cordoned for others."""
        self._bind(pod)
        time = since.strftime("%Y-%m-%dT%H:%M:%SZ")
        self._patch(pod, {"conditions": [podstatus.condition("PodScheduled", "True") | {"lastTransitionTime": time}]})

    # -- how it is done

    def _live(self) -> None:
        """Lists and watches until the end; what goes wrong is kept for the test's thread, which raises it."""
        while not self._stopped.is_set():
            try:
                self._follow()
            except ValueError as error:
                # Watch.stop shuts the TLS socket down while it is read: what is read then is ciphertext, no JSON.
                if not self._stopped.is_set():
                    self._error = error
                return
            except urllib3.exceptions.HTTPError:
                pass  # the API server is away; `wait_for_pods` has a deadline
            except client.ApiException as error:
                if error.status not in AGAIN:
                    self._error = error
                    return
            except BaseException as error:
                self._error = error
                return
            self._stopped.wait(0.1)

    def _follow(self) -> None:
        listed = json.loads(self._list(_preload_content=False).data)
        with self._lock:
            seen = {pod["metadata"]["uid"]: pod for pod in listed["items"]}
            self._gone |= {uid: pod for uid, pod in self._pods.items() if uid not in seen}
            self._pods = seen
        self._sync_all()
        version = listed["metadata"]["resourceVersion"]
        events = self._watch.stream(self._list, resource_version=version, timeout_seconds=600, deserialize=False)
        for event in events:
            pod, uid = event["object"], event["object"]["metadata"]["uid"]
            if event["type"] == "DELETED":
                with self._lock:
                    self._pods.pop(uid, None)
                    self._gone[uid] = pod
            else:
                with self._lock:
                    self._pods[uid] = pod
                self._sync(pod)

    def _sync_all(self) -> None:
        with self._lock:
            pods = list(self._pods.values())
        for pod in pods:
            self._sync(pod)

    def _sync(self, pod: Pod) -> None:
        """One look at one pod, as scheduler and as kubelet."""
        deleted, phase = "deletionTimestamp" in pod["metadata"], pod["status"]["phase"]
        node = pod["spec"].get("nodeName")
        if self._lost or node not in (None, self.name):
            return
        try:
            if deleted:
                self._end_in_time(pod)
            elif node is None:
                self._schedule(pod)
            elif self.policy and phase in ("Pending", "Running"):
                self.policy(self, pod)
        except client.ApiException as error:
            if not _is_gone(error):  # the next event tells
                raise

    def _schedule(self, pod: Pod) -> None:
        message = self._unschedulable_jobs.get(podstatus.job_of(pod), self._unschedulable)
        if not message:
            self._bind(pod)
        elif podstatus.message_of(pod, "PodScheduled") != message:
            condition = podstatus.condition("PodScheduled", "False", "Unschedulable", message)
            self._patch(pod, {"conditions": [condition]})

    def _bind(self, pod: Pod) -> None:
        meta = pod["metadata"]
        target = {"apiVersion": "v1", "kind": "Node", "name": self.name}
        body = {"metadata": {"name": meta["name"], "uid": meta["uid"]}, "target": target}
        self._core.create_namespaced_pod_binding(meta["name"], meta["namespace"], body, _preload_content=False)

    def _end_in_time(self, pod: Pod) -> None:
        """Ends a pod that is being deleted as `sigterm` says, killed when its grace period is over."""
        uid, grace = pod["metadata"]["uid"], pod["metadata"]["deletionGracePeriodSeconds"]
        end = self.sigterm if self.sigterm.after_seconds <= grace else Exit(137, after_seconds=grace)
        if pod["status"]["phase"] != "Running" or not end.after_seconds:
            self._end(pod, end)
            return
        with self._lock:
            if uid not in self._timers:
                self._timers[uid] = threading.Timer(end.after_seconds, self._end_by_timer, (pod, end))
                self._timers[uid].start()

    def _end_by_timer(self, pod: Pod, end: Exit) -> None:
        with self._lock:
            del self._timers[pod["metadata"]["uid"]]
        try:
            if not self._lost:
                self._end(pod, end)
        except urllib3.exceptions.HTTPError:
            pass  # the API server is away; the next list brings the pod again
        except client.ApiException as error:
            if not _is_gone(error) and error.status not in AGAIN:
                self._error = error

    def _end(self, pod: Pod, end: Exit) -> None:
        """The containers' end is written before the pod goes, as the kubelet does it."""
        if self._latest(pod)["status"]["phase"] == "Running":
            if end.code:
                self.fail(pod, end.code, "Error", end.message)
            else:
                self.succeed(pod, end.message)
        self._delete(pod, gracePeriodSeconds=0)

    def _disrupt(self, pod: Pod, reason: str, message: str) -> None:
        self._patch(pod, {"conditions": [podstatus.condition("DisruptionTarget", "True", reason, message)]})
        self._delete(pod)

    def _delete(self, pod: Pod, **options: int) -> None:
        meta = pod["metadata"]
        body = {"preconditions": {"uid": meta["uid"]}, **options}
        self._core.delete_namespaced_pod(meta["name"], meta["namespace"], body=body, _preload_content=False)

    def _patch(self, pod: Pod, status: dict[str, Any]) -> None:
        meta = pod["metadata"]
        body = {"metadata": {"uid": meta["uid"]}, "status": status}  # the uid is a precondition
        self._core.patch_namespaced_pod_status(
            meta["name"], meta["namespace"], body, _content_type=STRATEGIC, _preload_content=False
        )

    def _write_node(self, ready: str, reason: str) -> None:
        status = {
            "conditions": [podstatus.condition("Ready", ready, reason)],
            "capacity": CAPACITY,
            "allocatable": CAPACITY,
        }
        self._core.patch_node_status(self.name, {"status": status}, _content_type=STRATEGIC, _preload_content=False)

    def _latest(self, pod: Pod) -> Pod:
        with self._lock:
            return self._pods.get(pod["metadata"]["uid"], pod)

    def _config_map(self, pod: Pod, name: str) -> dict[str, str]:
        answer = self._core.read_namespaced_config_map(name, pod["metadata"]["namespace"], _preload_content=False)
        data: dict[str, str] = json.loads(answer.data)["data"]
        return data

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error:
            raise error


def _is_gone(error: client.ApiException) -> bool:
    """Whether the API server refused because this very pod is not there; of a new one under its name it says 422."""
    return error.status in (404, 409) or (error.status == 422 and "metadata.uid" in str(error.body))
