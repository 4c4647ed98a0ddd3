"""What must hold of jobs and their children in every cluster and at every moment. Pure, but for the command line."""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from devcluster.process import run

Obj = dict[str, Any]  # as the API server writes it

GROUP = "trl-operator.io"
LABEL_JOB_UID, LABEL_ATTEMPT = f"{GROUP}/job-uid", f"{GROUP}/attempt"
KINDS = ("SFTJob", "RewardJob", "DPOJob", "GRPOJob")
WORKLOADS = ("PyTorchJob", "TrainJob")
BESIDE = ("ConfigMap", "NetworkPolicy", "TrainingRuntime")
"""Kinds of what an attempt has beside its workload."""
OURS = ("PersistentVolumeClaim", *BESIDE, *WORKLOADS)
"""Kinds of what the operator makes for a job."""
RESOURCES = (
    *(f"{kind.lower()}s.{GROUP}" for kind in KINDS),
    "pytorchjobs.kubeflow.org", "pods", "configmaps", "networkpolicies.networking.k8s.io", "persistentvolumeclaims",
)  # fmt: skip
"""What a picture of a cluster consists of, as kubectl names it."""
TRAINER = ("trainjobs.trainer.kubeflow.org", "trainingruntimes.trainer.kubeflow.org")
"""And what more, where it is installed."""
ENDS = {
    "Succeeded": {"Finished": "True", "Succeeded": "True", "Failed": "False"},
    "Failed": {"Finished": "True", "Succeeded": "False", "Failed": "True"},
    "Cancelled": {"Finished": "True", "Succeeded": "False", "Failed": "False"},
}
"""Phases for good, and the conditions of each, which no other phase has."""
REPORTED = ("progress", "rewards", "checkpoints", "evaluation", "resumedFromStep", "usage")
"""Fields of the status that come from the trainer, its last words after the end too."""
LOST_NODE = timedelta(seconds=60)
"""A pod that is still there so long after its grace period counts as gone."""


@dataclass(frozen=True)
class Broken:
    """An invariant that does not hold of an object."""

    invariant: str
    about: str
    message: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.about}: {self.message}"


class Picture:
    """Objects of one moment: jobs, and what belongs to each by the uid of the job."""

    def __init__(self, objects: Iterable[Obj]) -> None:
        self.objects = {obj["metadata"]["uid"]: obj for obj in objects if obj["kind"] in KINDS or _job_uid(obj)}
        self.jobs = {uid: obj for uid, obj in self.objects.items() if obj["kind"] in KINDS}

    def of(self, uid: str, *kinds: str) -> list[Obj]:
        """The objects of these kinds that belong to a job."""
        return [obj for obj in self.objects.values() if obj["kind"] in kinds and _job_uid(obj) == uid]


def look(picture: Picture, now: datetime) -> list[Broken]:
    """What is broken in one picture. Objects that change while it is taken may contradict each other for a moment."""
    found = [broken for uid in picture.jobs for broken in _job(picture, uid, now)]
    return found + list(_orphans(picture))


def compare(before: Picture, after: Picture, *, quiet: bool = False) -> list[Broken]:
    """What is broken between two pictures; `quiet`: nothing had a reason to change meanwhile."""
    found: list[Broken] = []
    for uid in before.objects.keys() & after.objects.keys():
        old, new = before.objects[uid], after.objects[uid]
        if old["metadata"]["resourceVersion"] == new["metadata"]["resourceVersion"]:
            continue
        if old["kind"] in KINDS:
            found += changed(old, new)
        if quiet:
            found.append(Broken("no write without a change", _name(new), "was written while nothing had changed"))
        elif old["kind"] not in ("Pod", "PersistentVolumeClaim", *WORKLOADS) and _meaning(old) == _meaning(new):
            found.append(Broken("no write without a change", _name(new), "was written, and says what it said before"))
    return found


def changed(old: Obj, new: Obj) -> Iterator[Broken]:
    """What is broken between two versions of a job."""
    before, after = old.get("status", {}), new.get("status", {})
    if "completionTime" in before:
        passed = (*REPORTED, "observedGeneration")
        said, says = ({k: v for k, v in status.items() if k not in passed} for status in (before, after))
        if said != says:
            fields = sorted(name for name in said.keys() | says.keys() if said.get(name) != says.get(name))
            yield Broken("terminal is terminal", _name(new), f"{', '.join(fields)} changed after the end")
    if after.get("attempt", -1) < before.get("attempt", -1):
        message = f"attempt {before['attempt']} became {after.get('attempt')}"
        yield Broken("attempts without gaps", _name(new), message)


@dataclass
class History:
    """Everything that happened, event by event, in the order of the API server's resourceVersions: nothing slips by."""

    broken: list[Broken] = field(default_factory=list)
    workloads: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """Attempt and uid of every workload that a job has ever had, in the order of their creation, by the job's uid."""
    _now: dict[str, Obj] = field(default_factory=dict)

    def event(self, gone: bool, obj: Obj) -> None:
        """Take in one event of a watch."""
        uid = obj["metadata"]["uid"]
        before = self._now.pop(uid, None)
        if not gone:
            self._now[uid] = obj
        if obj["kind"] in KINDS and not gone:
            self._step(before, obj)
        if obj["kind"] in WORKLOADS and not gone and before is None:
            self._created(obj)
        if obj["kind"] in (*WORKLOADS, "Pod"):
            job = _job_uid(obj)
            theirs = Picture(known for known in self._now.values() if _job_uid(known) == job)
            self.broken += _one_live_attempt(theirs, job, _name(obj), datetime.min.replace(tzinfo=UTC))

    def _step(self, before: Obj | None, obj: Obj) -> None:
        if before is not None:
            self.broken += changed(before, obj)
        attempt, last = obj.get("status", {}).get("attempt", -1), (before or {}).get("status", {}).get("attempt", -1)
        if attempt > last + 1:
            self.broken.append(Broken("attempts without gaps", _name(obj), f"attempt {last} was followed by {attempt}"))

    def _created(self, workload: Obj) -> None:
        before = self.workloads.setdefault(_job_uid(workload), [])
        attempt = _attempt(workload)
        before.append((attempt, workload["metadata"]["uid"]))
        if attempt != len(before) - 1:
            message = f"is the {len(before)}th of its job: {[number for number, _ in before]}"
            self.broken.append(Broken("one workload per attempt", _name(workload), message))


def _job(picture: Picture, uid: str, now: datetime) -> Iterator[Broken]:
    job = picture.jobs[uid]
    yield from _one_live_attempt(picture, uid, _name(job), now)
    if "deletionTimestamp" in job["metadata"]:
        return
    yield from _attempts(picture, job)
    yield from _end(picture, job)
    yield from _status(picture, job, now)


def _one_live_attempt(picture: Picture, uid: str, name: str, now: datetime) -> Iterator[Broken]:
    live = _live(picture, uid, now)
    workloads = [obj for obj in picture.of(uid, *WORKLOADS) if _active(obj)]
    if len({_attempt(obj) for obj in live}) > 1 or len(workloads) > 1:
        yield Broken("one live attempt", name, f"alive are {', '.join(sorted(_name(obj) for obj in live))}")


def _orphans(picture: Picture) -> Iterator[Broken]:
    for obj in picture.objects.values():
        uid, owner = _job_uid(obj), _owner(obj)
        if obj["kind"] not in OURS or "deletionTimestamp" in obj["metadata"]:
            continue
        # A claim that is to outlive its job has no owner.
        if owner is None and obj["kind"] != "PersistentVolumeClaim":
            yield Broken("no orphans", _name(obj), f"has the label of job {uid} and no owner")
        if owner is not None and uid not in picture.jobs:
            yield Broken("no orphans", _name(obj), f"its job {owner['name']} ({uid}) is not there")


def _attempts(picture: Picture, job: Obj) -> Iterator[Broken]:
    status = job.get("status", {})
    last = status.get("attempt", -1)
    for obj in picture.of(job["metadata"]["uid"], *BESIDE, "Pod", *WORKLOADS):
        if _attempt(obj) > last:
            yield Broken("attempts without gaps", _name(obj), f"{_name(job)} knows attempts up to {last}")
    for obj in picture.of(job["metadata"]["uid"], *BESIDE):
        # The one before stays as long as its pods; a run has the label of no attempt.
        if status.get("phase") == "Running" and 0 <= _attempt(obj) < last - 1:
            yield Broken("no orphans", _name(obj), f"{_name(job)} is at attempt {last}")
    if status.get("restarts", 0) > max(last, 0):
        yield Broken("attempts without gaps", _name(job), f"{status['restarts']} restarts made attempt {last}")


def _end(picture: Picture, job: Obj) -> Iterator[Broken]:
    """An end is told in the same way everywhere, and leaves nothing alive."""
    status = job.get("status", {})
    phase, ended = status.get("phase"), "completionTime" in status
    said = {kind: found["status"] for kind in ENDS["Failed"] if (found := _condition(status, kind))}
    if (phase in ENDS) != ended or said != ENDS.get(str(phase), {}):
        message = f"phase {phase}, {said}, completionTime {status.get('completionTime')}"
        yield Broken("an end is told alike", _name(job), message)
    if (phase == "Failed") != ("failure" in status):
        yield Broken("an end is told alike", _name(job), f"phase {phase}, failure {status.get('failure')}")
    for obj in picture.of(job["metadata"]["uid"], *WORKLOADS):
        if ended and _active(obj):
            yield Broken("an end leaves nothing alive", _name(obj), f"{_name(job)} is {phase}")


def _status(picture: Picture, job: Obj, now: datetime) -> Iterator[Broken]:
    status, uid = job.get("status", {}), job["metadata"]["uid"]
    phase = status.get("phase")
    said = status.get("workload") or status.get("pytorchJob")
    there = {obj["metadata"]["uid"]: obj for obj in picture.of(uid, *WORKLOADS)}
    if phase in ("Starting", "Running") and said and said["uid"] not in there:
        yield Broken("status agrees with children", _name(job), f"phase {phase}, and {said['name']} is not there")
    if phase == "Running":
        pods = [pod for pod in picture.of(uid, "Pod") if _attempt(pod) == status["attempt"]]
        count = sum(pod.get("status", {}).get("phase") in ("Running", "Succeeded") for pod in pods)
        if count < job["spec"].get("numNodes", 1):
            yield Broken("status agrees with children", _name(job), f"phase Running, and {count} pods run")
    if phase in ("Pending", "Blocked", "Queued", "Suspended"):
        for obj in _live(picture, uid, now):
            # In a queue there is a workload, which is suspended.
            if phase != "Queued" or obj["kind"] == "Pod":
                yield Broken("status agrees with children", _name(job), f"phase {phase}, and {_name(obj)} is alive")


def _live(picture: Picture, uid: str, now: datetime) -> list[Obj]:
    """The active workloads of a job, and its pods that have not ended."""
    pods = [pod for pod in picture.of(uid, "Pod") if _runs(pod, now)]
    return pods + [obj for obj in picture.of(uid, *WORKLOADS) if _active(obj)]


def _active(workload: Obj) -> bool:
    status = workload.get("status", {})
    over = any(_condition(status, end).get("status") == "True" for end in ("Succeeded", "Complete", "Failed"))
    return not over and "deletionTimestamp" not in workload["metadata"]


def _runs(pod: Obj, now: datetime) -> bool:
    if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return False
    ends = pod["metadata"].get("deletionTimestamp")
    return ends is None or now <= datetime.fromisoformat(ends) + LOST_NODE


def _meaning(obj: Obj) -> str:
    """What an object says to whom reads it."""

    def cut(value: Any) -> Any:
        if isinstance(value, list):
            return [cut(each) for each in value]
        if isinstance(value, dict):
            passed = ("resourceVersion", "managedFields", "lastTransitionTime")
            return {name: cut(each) for name, each in value.items() if name not in passed}
        return value

    return json.dumps(cut(obj), sort_keys=True)


def _condition(status: Obj, kind: str) -> Obj:
    return next((c for c in status.get("conditions") or () if c["type"] == kind), {})


def _owner(obj: Obj) -> Obj | None:
    """The job that controls an object."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((o for o in owners if o.get("controller") and o["apiVersion"].startswith(f"{GROUP}/")), None)


def _job_uid(obj: Obj) -> str:
    """The uid of the job that an object belongs to; empty for what is none of ours."""
    if obj["kind"] in KINDS:
        return str(obj["metadata"]["uid"])
    owner = _owner(obj)
    return str(owner["uid"] if owner else obj["metadata"].get("labels", {}).get(LABEL_JOB_UID, ""))


def _attempt(obj: Obj) -> int:
    return int(obj["metadata"].get("labels", {}).get(LABEL_ATTEMPT, -1))


def _name(obj: Obj) -> str:
    return f"{obj['kind']} {obj['metadata'].get('namespace')}/{obj['metadata']['name']}"


def take(place: str) -> Picture:
    """A picture of the cluster of the current kubeconfig; `place` is --all-namespaces or --namespace=NAME."""
    served = run("kubectl", "api-resources", "--api-group=trainer.kubeflow.org", "--output=name").split()
    kinds = ",".join([*RESOURCES, *(kind for kind in TRAINER if kind in served)])
    return Picture(json.loads(run("kubectl", "get", kinds, place, "--output=json"))["items"])


def main() -> int:
    """Look twice, and say what is broken both times, or between; 1 if anything is."""
    parser = argparse.ArgumentParser(prog="python -m devcluster.invariants", description=__doc__)
    parser.add_argument("--namespace", help="look at this one only (else at all)")
    parser.add_argument("--seconds", type=float, default=10, help="between the two looks (10)")
    parser.add_argument("--quiet", action="store_true", help="nothing has a reason to change meanwhile: no job runs")
    given = parser.parse_args()
    place = f"--namespace={given.namespace}" if given.namespace else "--all-namespaces"
    first = take(place)
    seen = {(broken.invariant, broken.about) for broken in look(first, datetime.now(UTC))}
    time.sleep(given.seconds)
    second = take(place)
    # What is broken in one look only was changing just then.
    stand = [each for each in look(second, datetime.now(UTC)) if (each.invariant, each.about) in seen]
    found = stand + compare(first, second, quiet=given.quiet)
    print("\n".join(map(str, found)) or f"{len(second.jobs)} jobs, {len(second.objects)} objects: all invariants hold")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
