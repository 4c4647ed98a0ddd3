"""Jobs under an operator that dies: what is done to them, what is recorded, and when it is killed."""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from kubernetes import client, watch

from devcluster import invariants
from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode, Pod
from devcluster.faultproxy import FaultProxy, Request, Verdict
from devcluster.waiting import wait_for
from trl_operator.api.job import child_name
from trl_operator.api.kinds import KINDS

Obj = dict[str, Any]

QUIET_SECONDS = 1.5
HELD_BACK = "held-back"
"""In its nodeSelector: the node does not run the pod by itself."""
KUEUE = ("kueue.x-k8s.io", "v1beta2")
GROUP, VERSION = "trl-operator.io", "v1alpha1"
TRAINER = "trainer.kubeflow.org"
ROWS: dict[str, list[Obj]] = {
    "SFTJob": [{"prompt": "Where is it?", "completion": "I will look at once."}] * 4,
    "RewardJob": [{"chosen": "I will look at once.", "rejected": "no idea"}] * 4,
    "DPOJob": [{"prompt": "Where is it?", "chosen": "I will look at once.", "rejected": "no idea"}] * 4,
    "GRPOJob": [{"prompt": "Where is it?"}] * 8,
}
NAME = re.compile(r"\bj[0-9]{4}(?=\b)")
"""Names of jobs, which requests about them and their children carry."""
KUEUES = re.compile(r"(job-NAME-[a-z]+-[0-9]+)-[0-9a-f]{5}")
"""The name of a Workload, which Kueue writes at the pods that it lets go; its end is a digest of the other names."""
UID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def manifest(kind: str, name: str, **policy: Any) -> Obj:
    """A job that needs no other object."""
    spec: Obj = {
        "model": {"hub": {"repo": "org/base"}},
        "dataset": {"train": {"inline": ROWS[kind]}},
        "storage": {"size": "1Gi"},
        "runPolicy": policy,
    }
    if kind == "GRPOJob":
        spec["grpo"] = {"rewards": [{"name": "polite", "keyword": {"words": ["please"]}}]}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": {"name": name}, "spec": spec}


def through(operator: Any, proxy: FaultProxy) -> None:
    """Make the operator talk to the API server through the proxy."""
    config = json.loads(operator.kubeconfig.read_text())
    config["clusters"][0]["cluster"] = {"server": proxy.url}
    operator.kubeconfig = operator.kubeconfig.with_suffix(f".{operator.settings['IDENTITY']}")
    operator.kubeconfig.write_text(json.dumps(config))


class World:
    """A context manager: inside it everything that happens to a namespace's jobs is recorded, and may be done to them.

    It has an API server connection of its own: no fault reaches it.
    """

    def __init__(self, plane: ControlPlane, namespace: str, node: FakeNode) -> None:
        self.plane = plane
        self.namespace = namespace
        self.node = node
        self.uids: dict[str, str] = {}
        """Of jobs, by name; those that are gone too."""
        self.names: dict[str, str] = {}
        """Of jobs, by their own uids and those of what belongs to them."""
        self._events: list[tuple[int, bool, Obj]] = []
        self._now: dict[tuple[str, str], Obj] = {}
        self._watches: list[watch.Watch] = []
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self._api = client.CustomObjectsApi(self.plane.api())
        core = client.CoreV1Api(self.plane.api())
        for info in KINDS.values():
            self._record(self._api.list_namespaced_custom_object, GROUP, VERSION, self.namespace, info.plural)
        self._record(self._api.list_namespaced_custom_object, "kubeflow.org", "v1", self.namespace, "pytorchjobs")
        if "trainer" in self.plane.engines:
            self._record(self._api.list_namespaced_custom_object, TRAINER, "v1alpha1", self.namespace, "trainjobs")
        self._record(core.list_namespaced_pod, self.namespace)
        self._core = core
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        for each in self._watches:
            each.stop()
        for thread in self._threads:
            thread.join(5)

    def _record(self, function: Any, *arguments: str) -> None:
        self._begin(lambda: self._follow(function, arguments))

    def _begin(self, what: Callable[[], None]) -> None:
        """Do something beside the test; what goes wrong there is raised by `get`."""

        def run() -> None:
            try:
                what()
            except BaseException as error:
                # Stopping shuts the socket down while it is read, which may look like anything.
                if not self._stopped:
                    self._error = error

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _follow(self, function: Any, arguments: tuple[str, ...]) -> None:
        each = watch.Watch()
        self._watches.append(each)
        for event in each.stream(function, *arguments, deserialize=False):
            obj, gone = event["object"], event["type"] == "DELETED"
            self._events.append((int(obj["metadata"]["resourceVersion"]), gone, obj))
            key = (obj["kind"], obj["metadata"]["name"])
            if found := NAME.match(key[1]):
                self.names[obj["metadata"]["uid"]] = found.group()
            if gone:
                self._now.pop(key, None)
            else:
                self._now[key] = obj

    # -- what is there

    def get(self, kind: str, name: str) -> Obj | None:
        if self._error:
            raise self._error
        return self._now.get((kind, name))

    def status(self, kind: str, name: str) -> Obj:
        return dict((self.get(kind, name) or {}).get("status", {}))

    def pods(self, name: str) -> list[Pod]:
        """A job's pods that have not ended."""
        found = [obj for (kind, _), obj in list(self._now.items()) if kind == "Pod"]
        mine = [pod for pod in found if pod["metadata"]["labels"].get(f"{GROUP}/job-name") == name]
        return [pod for pod in mine if pod["status"].get("phase") in ("Pending", "Running")]

    def events(self) -> list[tuple[int, bool, Obj]]:
        """Everything that has happened so far, in its order: version, whether it is gone, object."""
        return sorted(self._events, key=lambda event: event[0])

    def history(self) -> invariants.History:
        """Everything that has happened so far."""
        history = invariants.History()
        for _, gone, obj in self.events():
            history.event(gone, obj)
        return history

    def picture(self) -> invariants.Picture:
        more = invariants.TRAINER if "trainer" in self.plane.engines else ()
        kinds = ",".join((*invariants.RESOURCES, *more))
        text = self.plane.kubectl("get", kinds, f"--namespace={self.namespace}", "--output=json")
        return invariants.Picture(json.loads(text)["items"])

    def settle(self, picture: invariants.Picture) -> None:
        """Wait until every job, workload and pod of a picture has been recorded as it is there."""
        recorded = (*KINDS, *invariants.WORKLOADS, "Pod")
        wanted = {_version(obj) for obj in picture.objects.values() if obj["kind"] in recorded}
        wait_for("what is there was recorded", lambda: wanted <= set(map(_version, list(self._now.values()))), 20)

    # -- what is done

    def create(self, kind: str, name: str, spec: Obj | None = None, **policy: Any) -> None:
        """`spec` are more fields of its spec."""
        obj = manifest(kind, name, **policy)
        obj["spec"] |= spec or {}
        made = self._api.create_namespaced_custom_object(*self._place(kind), obj)
        self.uids[name] = made["metadata"]["uid"]
        self.names[made["metadata"]["uid"]] = name

    def patch(self, kind: str, name: str, **policy: Any) -> None:
        self.patch_spec(kind, name, {"runPolicy": policy})

    def patch_spec(self, kind: str, name: str, change: Obj) -> None:
        self._api.patch_namespaced_custom_object(*self._place(kind), name, {"spec": change})

    def queue(self, name: str, stop_policy: str) -> None:
        """Create or change a LocalQueue of the ClusterQueue that has the namespace's name."""
        spec = {"clusterQueue": self.namespace, "stopPolicy": stop_policy}
        obj = {"apiVersion": "/".join(KUEUE), "kind": "LocalQueue", "metadata": {"name": name}, "spec": spec}
        place = (*KUEUE, self.namespace, "localqueues")
        try:
            self._api.create_namespaced_custom_object(*place, obj)
        except client.ApiException as error:
            if error.status != 409:
                raise
            self._api.patch_namespaced_custom_object(*place, name, {"spec": spec})

    def lose_config_map(self, kind: str, name: str) -> None:
        """Somebody deletes the ConfigMap of a job's first attempt, and a kubelet finds it missing."""
        [pod], lost = self.pods(name), child_name(KINDS[kind], name, 0)
        self._core.delete_namespaced_config_map(lost, self.namespace)
        words = f'MountVolume.SetUp failed for volume "attempt" : configmap "{lost}" not found'
        about = {"apiVersion": "v1", "kind": "Pod", "namespace": self.namespace}
        about |= {field: pod["metadata"][field] for field in ("name", "uid")}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {"metadata": {"generateName": f"{name}-"}, "involvedObject": about, "reason": "FailedMount"}
        event |= {"type": "Warning", "message": words, "lastTimestamp": now, "source": {"component": "kubelet"}}
        self._core.create_namespaced_event(self.namespace, event)

        def mount() -> None:
            """As the kubelet, which tries it again and again."""
            wait_for(f"ConfigMap {lost} is there again", lambda: self._finds(lost), 120, 0.1)
            self.node.run(pod)

        self._begin(mount)

    def _finds(self, config_map: str) -> bool:
        found = self._core.list_namespaced_config_map(self.namespace, field_selector=f"metadata.name={config_map}")
        return bool(found.items)

    def patch_status(self, kind: str, name: str, **status: Any) -> None:
        self._api.patch_namespaced_custom_object_status(*self._place(kind), name, {"status": status})

    def delete(self, kind: str, name: str) -> None:
        self._api.delete_namespaced_custom_object(*self._place(kind), name)

    def _place(self, kind: str) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self.namespace, KINDS[kind].plural

    def end_pods(self, name: str, code: int, message: str) -> None:
        for pod in self.pods(name):
            if code:
                self.node.fail(pod, code, message=message)
            else:
                self.node.succeed(pod, message)


def _version(obj: Obj) -> tuple[str, str]:
    return obj["metadata"]["uid"], obj["metadata"]["resourceVersion"]


@dataclass(frozen=True)
class Call:
    """A request of the operator that is about one job: the n-th of its kind since the counting began."""

    method: str
    resource: str
    number: int

    @property
    def writes(self) -> bool:
        return self.method != "GET"

    def __str__(self) -> str:
        return f"{self.method} {self.resource} #{self.number}"


@dataclass(eq=False)
class Point:
    """An instant at which the operator is to die: at this call about this job, before or after the server has it."""

    job: str
    call: Call
    moment: str
    hit: bool = False


@dataclass
class Killer:
    """Counts the calls about each job that it is told to watch, and kills the operator at the armed points."""

    operator: Any
    world: World
    calls: dict[str, list[tuple[float, Call]]] = field(default_factory=dict)
    """When which call was made, by job."""
    armed: dict[str, Point] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    killed: threading.Event = field(default_factory=threading.Event)

    def watch(self, name: str, delay: float) -> None:
        """Count the calls about a job that are made in so many seconds and later."""
        self.since[name] = time.monotonic() + delay
        self.calls[name] = []

    def arm(self, point: Point, delay: float) -> None:
        self.armed[point.job] = point
        self.watch(point.job, delay)

    def is_quiet(self, name: str) -> bool:
        """Whether nothing was asked about a job for a while."""
        return time.monotonic() > max([at for at, _ in self.calls[name]], default=self.since[name]) + QUIET_SECONDS

    def attach(self, proxy: FaultProxy) -> None:
        proxy.before, proxy.after = self._before, self._after

    def _before(self, request: Request) -> Verdict:
        name = about(request, self.world.names)
        if name not in self.calls:
            return "pass"
        now = time.monotonic()
        if now < self.since[name]:
            return "pass"
        key = (request.method, request.resource)
        number = sum((call.method, call.resource) == key for _, call in self.calls[name]) + 1
        self.calls[name].append((now, Call(*key, number)))
        return self._at(self.armed.get(name), "before", name, key)

    def _after(self, request: Request) -> Verdict:
        name = about(request, self.world.names)
        if name not in self.calls:
            return "pass"
        return self._at(self.armed.get(name), "after", name, (request.method, request.resource))

    def _at(self, point: Point | None, moment: str, name: str, key: tuple[str, str]) -> Verdict:
        """Kill if this is the point. Of several calls alike that are under way at once the last one counts."""
        if point is None or point.hit or point.moment != moment or (point.call.method, point.call.resource) != key:
            return "pass"
        if sum((call.method, call.resource) == key for _, call in self.calls[name]) < point.call.number:
            return "pass"
        point.hit = True
        self.operator.kill()
        self.killed.set()
        return "reset"


@dataclass
class StartKiller:
    """Counts the calls of an operator that starts, whatever they are about, and kills it at the armed one."""

    operator: Any
    calls: list[Call] = field(default_factory=list)
    point: Point | None = None
    last: float = 0.0
    """When the last call was made."""

    def is_quiet(self) -> bool:
        """Whether it has nothing more to ask: kopf is ready before it has listed anything."""
        return time.monotonic() > self.last + QUIET_SECONDS / 2

    def begin(self, point: Point | None = None) -> None:
        """Start the operator anew."""
        self.calls, self.point = [], point
        self.operator.launch()

    def attach(self, proxy: FaultProxy) -> None:
        proxy.before, proxy.after = self._before, self._after

    def _before(self, request: Request) -> Verdict:
        key, self.last = (request.method, request.resource or request.path), time.monotonic()
        self.calls.append(Call(*key, sum((call.method, call.resource) == key for call in self.calls) + 1))
        return self._at("before", self.calls[-1])

    def _after(self, request: Request) -> Verdict:
        key = (request.method, request.resource or request.path)
        made = [call for call in self.calls if (call.method, call.resource) == key]
        return self._at("after", made[-1]) if made else "pass"

    def _at(self, moment: str, call: Call) -> Verdict:
        if self.point is None or self.point.hit or (self.point.moment, self.point.call) != (moment, call):
            return "pass"
        self.point.hit = True
        self.operator.kill()
        return "reset"


def about(request: Request, names: dict[str, str]) -> str | None:
    """The job that a request concerns, by its name or by its uid."""
    text = f"{request.path}?{request.query}"
    for place in (text, request.body.decode(errors="replace")):
        if found := NAME.search(place):
            return found.group()
        if known := [names[uid] for uid in UID.findall(place) if uid in names]:
            return known[0]
    return None


def end(status: Obj, name: str) -> Any:
    """What must be the same of a job's status whatever happened on the way, but for its name."""
    conditions = {c["type"]: (c["status"], c["reason"]) for c in status.get("conditions", ())}
    kept = ("phase", "attempt", "restarts", "artifacts", "failure", "progress", "evaluation", "adaptations")
    retry = {field: value for field, value in status.get("retry", {}).items() if field != "notBefore"}
    told = {**{field: status.get(field) for field in kept}, "retry": retry, "conditions": conditions}
    return json.loads(json.dumps(told).replace(name, "NAME"))


def shape(picture: invariants.Picture, uid: str, name: str) -> Counter[str]:
    """Everything that is left of a job: kind, name, and a digest of what it says, but for the names and uids in it."""
    found: Counter[str] = Counter()
    for obj in picture.objects.values():
        metadata, labels = obj["metadata"], obj["metadata"].get("labels", {})
        if uid not in (metadata["uid"], labels.get(f"{GROUP}/job-uid")):
            continue
        said = {key: obj.get(key) for key in ("spec", "data")}
        if obj["kind"] == "PersistentVolumeClaim":
            said = {"spec": {key: obj["spec"][key] for key in ("accessModes", "resources")}}
        if obj["kind"] == "Pod":
            # What others write at it has names and digests of names in it.
            said = {"phase": obj["status"]["phase"]}
            labels = {key: value for key, value in labels.items() if key.startswith(f"{GROUP}/")}
        text = json.dumps([said, labels], sort_keys=True).replace(uid, "UID").replace(name, "NAME")
        text = KUEUES.sub(r"\1-HASH", UID.sub("UID", text))
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        # A Job's pods have names of its choice.
        called = metadata.get("generateName", metadata["name"]).replace(name, "NAME")
        found[f"{obj['kind']} {called} {digest}"] += 1
    return found
