"""The operator is killed at every call of an operation, and what must hold of the jobs afterwards."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from chaos import Call, Killer, Obj, Point, World, end, shape
from kill_report import keep
from operations import FULL, Operation, phase

from devcluster import invariants
from devcluster.faultproxy import FaultProxy
from devcluster.waiting import wait_for

STAGGER_SECONDS = 2.5
"""Between jobs that come to the operation's calls by themselves; a kill and a start take less."""


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
        for name in names:
            self.operation.ready(self.world, name)
        if kind := self.operation.upstream:
            for name in names:
                self.world.create(kind, f"{name}-up")
            self.wait("Running", [f"{name}-up" for name in names], phase("Running"), kind)
        if not self.operation.before:
            return
        for step in self.operation.before:
            for name in names:
                self.do(name, step)
            self.wait("as they are to be", names, step.done)
        # Events follow the status.
        for name in names:
            self.killer.watch(name, 0)
        wait_for("nothing is asked about them", lambda: all(map(self.killer.is_quiet, names)), 30, 0.05)

    def do(self, name: str, step: Operation | None = None) -> None:
        """Do it to a job, or another operation that comes before it."""
        step = step or self.operation
        if step.do is None:
            self.world.create(self.kind, name, self.operation.spec(name), **self.operation.policy)
        else:
            step.do(self.world, self.kind, name)

    def wait(
        self, what: str, names: Sequence[str], reached: Callable[[Obj | None], bool], kind: str | None = None
    ) -> None:
        def all_are() -> bool:
            self.relaunch()
            return all(reached(self.world.get(kind or self.kind, name)) for name in names)

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
        self.do(name)
        wait_for(f"{name}, undisturbed, is done", lambda: self.over(name), 60, 0.05)
        return [call for _, call in self.killer.calls[name]]

    def disturbed(self, points: list[Point]) -> None:
        """Do it to one job after the other, and kill the operator by each."""
        self.prepare([point.job for point in points])
        for point in points:
            began = time.monotonic()
            self.killer.arm(point, self.operation.delay)
            self.do(point.job)

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
    told = {f"{entry['verb']} {entry['requestURI']}" for entry in written if entry["objectRef"]["resource"] != "leases"}
    assert not told
    broken = invariants.compare(first, picture, quiet=True) + invariants.look(picture, datetime.now(UTC))
    assert not broken, broken
    world.settle(picture)
    return picture


def hold(world: World, operator: Any, kind: str, names: Sequence[str], upstream: str = "") -> None:
    """What is true of j0000, which nothing had disturbed, is true of all; so it is of what they build on."""
    picture = still(world, operator)
    history = world.history()
    assert not history.broken, history.broken
    for of, suffix in [(kind, ""), (upstream, "-up")] if upstream else [(kind, "")]:
        first = f"j0000{suffix}"
        expected = shape(picture, world.uids[first], first)
        attempts = [attempt for attempt, _ in history.workloads[world.uids[first]]]
        for name in (f"{name}{suffix}" for name in names):
            assert end(world.status(of, name), name) == end(world.status(of, first), first)
            found = shape(picture, world.uids[name], name)
            assert found == expected, f"{name} has {found - expected}, j0000 {expected - found}"
            assert [attempt for attempt, _ in history.workloads[world.uids[name]]] == attempts, name


def kill_at_every_call(
    world: World, operator: Any, proxy: FaultProxy, kind: str, name: str, operation: Operation
) -> None:
    """The end is as if nothing had happened; `make test` does it to the writes only. `name` is the operation's."""
    began = time.monotonic()
    operator.start()
    run = Run(world, operator, proxy, kind, operation)
    calls = run.reference("j0000")
    chosen = calls if FULL else [call for call in calls if call.writes]
    places = [(moment, call) for call in chosen for moment in ("before", "after")]
    points = [Point(f"j{number:04d}", call, moment) for number, (moment, call) in enumerate(places, 1)]
    run.disturbed(points)
    hold(world, operator, kind, [point.job for point in points], operation.upstream)
    # A call that the operator made once because of when it looked need not come again; of every kind some must.
    missed = [f"{point.moment} {point.call}" for point in points if not point.hit]
    hit = {(point.moment, point.call.method, point.call.resource) for point in points if point.hit}
    writes = [call for call in chosen if call.writes]
    wanted = {(moment, call.method, call.resource) for call in writes for moment in ("before", "after")}
    assert wanted <= hit, missed
    keep(
        "matrix",
        f"{kind} {name}",
        calls=len(chosen),
        writes=len(writes),
        kills=len(points) - len(missed),
        missed=missed,
        seconds=time.monotonic() - began,
    )
