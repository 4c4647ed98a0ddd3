"""What is done to jobs while the operator is killed."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

from chaos import HELD_BACK, Obj, World

FULL = os.environ.get("KILLS") == "full"
"""`make kill-matrix`, not `make test`."""
KINDS = ("SFTJob", "RewardJob", "DPOJob", "GRPOJob")
ARTIFACT = {"type": "model", "uri": "u", "digest": "sha256:0"}
PROGRESS = {
    "attempt": 0, "step": 4, "totalSteps": 4, "activity": "exporting", "lastUpdateTime": "2026-11-21T11:00:00Z",
}  # fmt: skip


Reached = Callable[[Obj | None], bool]


@dataclass(frozen=True)
class Operation:
    """What is done to a job, and when that is done."""

    do: Callable[[World, str, str], None] | None
    """None: it is created."""
    done: Reached
    before: tuple["Operation", ...] = ()
    """What is done to the job first."""
    policy: Obj = field(default_factory=dict)
    spec: Callable[[str], Obj] = lambda _: {}
    """More fields of its spec, by its name."""
    ready: Callable[[World, str], None] = lambda _, __: None
    """What its namespace needs first."""
    upstream: str = ""
    """Kind of the job NAME-up that it builds on, which runs before it is created."""
    rest: Reached | None = None
    """When nothing more happens by itself, if that is later."""
    delay: float = 0
    """The operator does it by itself so long after `do`; what it does before that is another operation's."""


def phase(name: str, attempt: int | None = 0) -> Reached:
    """None: no attempt has begun."""

    def reached(job: Obj | None) -> bool:
        status = (job or {}).get("status", {})
        return (status.get("phase"), status.get("attempt")) == (name, attempt)

    return reached


def gone(job: Obj | None) -> bool:
    return job is None


def patch(**policy: Any) -> Callable[[World, str, str], None]:
    return lambda world, kind, name: world.patch(kind, name, **policy)


def succeed(world: World, kind: str, name: str) -> None:
    world.end_pods(name, 0, record("Succeeded", artifacts=[ARTIFACT], progress=PROGRESS))


def fail(world: World, kind: str, name: str) -> None:
    world.end_pods(name, 1, record("Failed", reason="Unknown", message="a bug", rank=0))


def record(outcome: str, **fields: Any) -> str:
    return json.dumps({"contractVersion": 1, "outcome": outcome, "time": "2026-11-21T11:00:00.000000Z", **fields})


def restarts(job: Obj | None) -> bool:
    """The next attempt is due, or has begun."""
    return phase("Restarting", 1)(job) or phase("Running", 1)(job)


CREATE = Operation(None, phase("Running"))
SUSPEND = Operation(patch(suspend=True), phase("Suspended", 1), (CREATE,))
OPERATIONS = {
    "create": CREATE,
    "succeed": Operation(succeed, phase("Succeeded"), (CREATE,)),
    "fail": Operation(fail, phase("Failed"), (CREATE,), {"maxRestarts": 0}),
    "fail, to be tried again": Operation(fail, restarts, (CREATE,), rest=phase("Running", 1)),
    "restart": Operation(fail, phase("Running", 1), (CREATE,), delay=8),
    "suspend": SUSPEND,
    "resume": Operation(patch(suspend=False), phase("Running", 1), (CREATE, SUSPEND)),
    "cancel": Operation(patch(cancel=True), phase("Cancelled"), (CREATE,)),
    "delete": Operation(lambda world, kind, name: world.delete(kind, name), gone, (CREATE,)),
    "ttl": Operation(succeed, gone, (CREATE,), {"ttlSecondsAfterFinished": 1}),
    "deadline": Operation(None, phase("Failed"), policy={"activeDeadlineSeconds": 15}, delay=12),
}
"""Of every kind."""


# -- jobs that build on others, and attempts that differ


def succeed_upstream(world: World, kind: str, name: str) -> None:
    succeed(world, kind, f"{name}-up")


def fail_upstream(world: World, kind: str, name: str) -> None:
    saved = [{"step": 2, "path": "u/checkpoint-2", "time": PROGRESS["lastUpdateTime"]}]
    told = {**PROGRESS, "step": 3, "activity": "training", "checkpoints": saved}
    words = record("Failed", reason="NonFiniteLoss", message="nan", rank=0, progress=told)
    world.end_pods(f"{name}-up", 12, words)


def run_out_of_memory(world: World, kind: str, name: str) -> None:
    told = {"reason": "OutOfGPUMemory", "message": "no room", "rank": 0, "activity": "training"}
    world.end_pods(name, 1, record("Failed", **told))


SHRINK: Obj = {"policy": {"onOutOfMemory": "ShrinkMicroBatch"}, "spec": lambda _: {"training": BATCH}}
BATCH = {"perDeviceBatchSize": 4}
BLOCKED = Operation(None, phase("Blocked", None))
STARTING = Operation(None, phase("Starting"))
OTHERS = {
    ("DPOJob", "begin when model.fromJob has succeeded"): Operation(
        succeed_upstream,
        phase("Running"),
        (BLOCKED,),
        spec=lambda name: {"model": {"fromJob": {"kind": "SFTJob", "name": f"{name}-up"}}},
        upstream="SFTJob",
    ),
    ("SFTJob", "begin when resumeFrom has failed"): Operation(
        fail_upstream,
        phase("Running"),
        (BLOCKED,),
        spec=lambda name: {"checkpoint": {"resumeFrom": {"job": f"{name}-up"}}},
        upstream="SFTJob",
    ),
    ("GRPOJob", "out of memory, to be tried again"): Operation(
        run_out_of_memory, restarts, (CREATE,), rest=phase("Running", 1), **SHRINK
    ),
    ("RewardJob", "restart with half the micro-batch"): Operation(
        run_out_of_memory, phase("Running", 1), (CREATE,), delay=8, **SHRINK
    ),
    ("DPOJob", "restore a ConfigMap before it is mounted"): Operation(
        lambda world, kind, name: world.lose_config_map(kind, name),
        phase("Running"),
        (STARTING,),
        spec=lambda _: {"nodeSelector": {HELD_BACK: "true"}},
    ),
}
"""Of one kind each."""


# -- on TrainJobs, and in Kueue's queues


def stop(policy: str) -> Callable[[World, str, str], None]:
    """The job's own queue holds its jobs back, lets them go, or takes back what they have."""
    return lambda world, kind, name: world.queue(name, policy)


IN_QUEUE: Obj = {
    "policy": {"maxRestarts": 0},
    "spec": lambda name: {"queue": {"name": name}, "resources": {"requests": {"cpu": 1}}},
}
CLOSED: Obj = {**IN_QUEUE, "ready": lambda world, name: world.queue(name, "Hold")}
OPEN: Obj = {**IN_QUEUE, "ready": lambda world, name: world.queue(name, "None")}
QUEUE_UP = Operation(None, phase("Queued"), **CLOSED)
EVICT = Operation(stop("HoldAndDrain"), phase("Queued", 1), (CREATE,), **OPEN)


def both_queues(world: World, name: str) -> None:
    world.queue(name, "Hold")
    world.queue(f"{name}-other", "None")


QUEUED = {
    "create in a queue": QUEUE_UP,
    "admitted": Operation(stop("None"), phase("Running"), (QUEUE_UP,), **CLOSED),
    "evicted": EVICT,
    "admitted again": Operation(stop("None"), phase("Running", 1), (CREATE, EVICT), **OPEN),
    "move to another queue": Operation(
        lambda world, kind, name: world.patch_spec(kind, name, {"queue": {"name": f"{name}-other"}}),
        phase("Running", 1),
        (QUEUE_UP,),
        **IN_QUEUE,
        ready=both_queues,
    ),
}


def on_trainjob(operation: Operation) -> Operation:
    return replace(operation, spec=lambda name: {**operation.spec(name), "backend": "trainjob"})


TRAINJOBS = ("create", "restart", "suspend", "resume", "delete", "evicted")
ENGINES = {
    **{(kind, name): QUEUED[name] for kind, name in zip(cycle(KINDS), QUEUED, strict=False)},
    **{
        (kind, f"{name} as TrainJob"): on_trainjob({**OPERATIONS, **QUEUED}[name])
        for kind, name in zip(cycle(KINDS), TRAINJOBS, strict=False)
    },
}
"""Of one kind each, where there are Kueue, Trainer and JobSet."""
PARTS = {(kind, name): operation for kind in KINDS for name, operation in OPERATIONS.items()} | OTHERS
"""Where there is the training-operator alone."""
