"""What is done to jobs, step by step, and what must hold of them afterwards."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from chaos import Call, Killer, Obj, Point, World, end, shape

from devcluster import invariants
from devcluster.faultproxy import FaultProxy
from devcluster.waiting import wait_for

FULL = os.environ.get("KILLS") == "full"
"""`make kill-matrix`, not `make test`."""
KINDS = ("SFTJob", "RewardJob", "DPOJob", "GRPOJob")
ARTIFACT = {"type": "model", "uri": "u", "digest": "sha256:0"}
PROGRESS = {
    "attempt": 0, "step": 4, "totalSteps": 4, "activity": "exporting", "lastUpdateTime": "2026-11-21T11:00:00Z",
}  # fmt: skip
STAGGER_SECONDS = 2.5
"""Between jobs that come to the operation's calls by themselves; a kill and a start take less."""


@dataclass(frozen=True)
class Operation:
    """What is done to a job, and when that is done."""

    do: Callable[[World, str, str], None]
    done: Callable[[Obj | None], bool]
    before: tuple[str, ...] = ("Running",)
    """Phases that the job is brought to first."""
    policy: Obj = field(default_factory=dict)
    rest: Callable[[Obj | None], bool] | None = None
    """When nothing more happens by itself, if that is later."""
    delay: float = 0
    """The operator does it by itself so long after `do`; what it does before that is another operation's."""


def phase(name: str, attempt: int = 0) -> Callable[[Obj | None], bool]:
    def reached(job: Obj | None) -> bool:
        status = (job or {}).get("status", {})
        return (status.get("phase"), status.get("attempt")) == (name, attempt)

    return reached


def gone(job: Obj | None) -> bool:
    return job is None


def create(world: World, kind: str, name: str, **policy: Any) -> None:
    world.create(kind, name, **policy)


def patch(**policy: Any) -> Callable[[World, str, str], None]:
    return lambda world, kind, name: world.patch(kind, name, **policy)


def succeed(world: World, kind: str, name: str) -> None:
    world.end_pods(name, 0, record("Succeeded", artifacts=[ARTIFACT], progress=PROGRESS))


def fail(world: World, kind: str, name: str) -> None:
    world.end_pods(name, 1, record("Failed", reason="Unknown", message="a bug", rank=0))


def record(outcome: str, **fields: Any) -> str:
    return json.dumps({"contractVersion": 1, "outcome": outcome, "time": "2026-11-21T11:00:00.000000Z", **fields})


OPERATIONS = {
    "create": Operation(create, phase("Running"), before=()),
    "succeed": Operation(succeed, phase("Succeeded")),
    "fail": Operation(fail, phase("Failed"), policy={"maxRestarts": 0}),
    "fail, to be tried again": Operation(
        fail, lambda job: phase("Restarting", 1)(job) or phase("Running", 1)(job), rest=phase("Running", 1)
    ),
    "restart": Operation(fail, phase("Running", 1), delay=8),
    "suspend": Operation(patch(suspend=True), phase("Suspended", 1)),
    "resume": Operation(patch(suspend=False), phase("Running", 1), before=("Running", "Suspended")),
    "cancel": Operation(patch(cancel=True), phase("Cancelled")),
    "delete": Operation(lambda world, kind, name: world.delete(kind, name), gone),
    "ttl": Operation(succeed, gone, policy={"ttlSecondsAfterFinished": 1}),
    "deadline": Operation(
        lambda world, kind, name: create(world, kind, name, activeDeadlineSeconds=15),
        phase("Failed"),
        before=(),
        delay=12,
    ),
}


class Run:
    """One operation on many jobs, each with a point at which the operator dies."""

    def __init__(self, world: World, operator: Any, proxy: FaultProxy, kind: str, operation: Operation) -> None:
        self.world = world
        self.operator = operator
        self.kind = kind
        self.operation = operation
        self.killer = Killer(operator, world)
        self.killer.attach(proxy)

    def prepare(self, names: Sequence[str]) -> None:
        """The jobs are as the operation needs them."""
        if not self.operation.before:
            return
        for name in names:
            self.world.create(self.kind, name, **self.operation.policy)
        self.wait("Running", names, phase("Running"))
        if "Suspended" in self.operation.before:
            for name in names:
                self.world.patch(self.kind, name, suspend=True)
            self.wait("Suspended", names, phase("Suspended", 1))
        # Events follow the status.
        for name in names:
            self.killer.watch(name, 0)
        wait_for("nothing is asked about them", lambda: all(map(self.killer.is_quiet, names)), 30, 0.05)

    def wait(self, what: str, names: Sequence[str], reached: Callable[[Obj | None], bool]) -> None:
        def all_are() -> bool:
            self.relaunch()
            return all(reached(self.world.get(self.kind, name)) for name in names)

        wait_for(f"jobs are {what}", all_are, 120, 0.05)

    def relaunch(self) -> None:
        """Start the operator if it was killed; nothing else may have ended it."""
        if self.operator.process.poll() is not None:
            assert self.killer.killed.wait(5), self.operator.log.read_text()[-4000:]
            self.killer.killed.clear()
            self.operator.launch()

    def over(self, name: str) -> bool:
        """The operation is done, or the operator killed by it."""
        point = self.killer.armed.get(name)
        if point is not None and point.hit:
            return True
        return self.operation.done(self.world.get(self.kind, name)) and self.killer.is_quiet(name)

    def reference(self, name: str) -> list[Call]:
        """Do it undisturbed; return its calls."""
        self.prepare([name])
        self.killer.watch(name, self.operation.delay)
        self.operation.do(self.world, self.kind, name)
        wait_for(f"{name}, undisturbed, is done", lambda: self.over(name), 60, 0.05)
        return [call for _, call in self.killer.calls[name]]

    def disturbed(self, points: list[Point]) -> None:
        """Do it to one job after the other, and kill the operator by each."""
        self.prepare([point.job for point in points])
        for point in points:
            began = time.monotonic()
            self.killer.arm(point, self.operation.delay)
            self.operation.do(self.world, self.kind, point.job)

            def next_turn(point: Point = point, began: float = began) -> bool:
                self.relaunch()
                if self.operation.delay:
                    return time.monotonic() > began + STAGGER_SECONDS
                return self.over(point.job)

            wait_for(f"the operator is killed by {point}", next_turn, 60, 0.02)
        self.wait("done", ["j0000", *(point.job for point in points)], self.operation.rest or self.operation.done)
        for point in points:
            wait_for(f"{point.job} has nothing more to do", lambda name=point.job: self.over(name), 30)


def still(world: World, operator: Any) -> invariants.Picture:
    """Nobody writes any more, and all invariants hold; return the picture that shows it."""
    wait_for(
        "what is wrong for a moment is over", lambda: not invariants.look(world.picture(), datetime.now(UTC)), 60, 1
    )
    before = len(world.plane.audit(operator.user))
    first = world.picture()
    time.sleep(3)  # nothing happens in that time: there is nothing to wait for
    picture = world.picture()
    written = [e for e in world.plane.audit(operator.user)[before:] if e["verb"] not in ("get", "list", "watch")]
    assert {entry["objectRef"]["resource"] for entry in written} <= {"leases"}, written
    broken = invariants.compare(first, picture, quiet=True) + invariants.look(picture, datetime.now(UTC))
    assert not broken, broken
    world.settle(picture)
    return picture


def hold(world: World, operator: Any, kind: str, names: Sequence[str]) -> None:
    """What is true of j0000, which nothing had disturbed, is true of all."""
    picture = still(world, operator)
    history = world.history()
    assert not history.broken, history.broken
    uids = world.uids
    expected = shape(picture, uids["j0000"], "j0000")
    attempts = [attempt for attempt, _ in history.workloads[uids["j0000"]]]
    for name in names:
        assert end(world.status(kind, name), name) == end(world.status(kind, "j0000"), "j0000")
        assert shape(picture, uids[name], name) == expected, name
        assert [attempt for attempt, _ in history.workloads[uids[name]]] == attempts, name
