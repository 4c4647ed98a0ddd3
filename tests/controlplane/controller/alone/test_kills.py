"""The operator killed at every call of every operation: the end is as if nothing had happened.

`make test` does it to the writes of some operations, `make kill-matrix` (KILLS=full) to all calls of all, and writes
docs/kill-matrix.md.
"""

import time
from contextlib import suppress
from typing import Any

import pytest
from chaos import Point, StartKiller, World
from kill_report import keep
from killing import hold, kill_at_every_call
from operations import FULL, PARTS, phase, succeed

from devcluster.faultproxy import FaultProxy
from devcluster.waiting import wait_for

SHORT = [("DPOJob", "create"), ("GRPOJob", "succeed"), ("SFTJob", "suspend")]


@pytest.mark.parametrize(("kind", "name"), PARTS if FULL else SHORT)
def test_killed_at_any_call_it_comes_to_the_same_end(
    kind: str, name: str, world: World, quick_operator: Any, proxy: FaultProxy
) -> None:
    kill_at_every_call(world, quick_operator, proxy, kind, name, PARTS[kind, name])


def test_killed_at_any_call_of_its_start_it_starts_again(world: World, quick_operator: Any, proxy: FaultProxy) -> None:
    """Beside a job that runs; `make test` does it once for each kind of call. One that had succeeded before any of it
    shows what its end must be."""
    operator, began, kind = quick_operator, time.monotonic(), "DPOJob"
    operator.start()
    for name in ("j0000", "j0001"):
        world.create(kind, name)
        wait_for(f"{name} runs", lambda name=name: phase("Running")(world.get(kind, name)), 60)
    succeed(world, kind, "j0000")
    wait_for("j0000 has succeeded", lambda: phase("Succeeded")(world.get(kind, "j0000")), 60)
    killer = StartKiller(operator)
    killer.attach(proxy)

    def started() -> bool:
        """Or it has ended; it may while it is asked."""
        with suppress(OSError):
            if operator.process.poll() is not None:
                return True
            return operator.answer("readyz") == 200 and operator.leads() and killer.is_quiet()
        return False

    operator.kill()
    killer.begin()
    wait_for("it has started, undisturbed", started, 60)
    calls = list(killer.calls)
    chosen = calls if FULL else [call for call in calls if call.number == 1]
    points = [Point("j0001", call, moment) for call in chosen for moment in ("before", "after")]
    for point in points:
        operator.kill()
        killer.begin(point)
        wait_for(f"the operator is killed {point.moment} {point.call}, or has started", started, 60, 0.05)
    operator.kill()
    killer.begin()
    succeed(world, kind, "j0001")
    wait_for("j0001 has succeeded", lambda: phase("Succeeded")(world.get(kind, "j0001")), 60)
    hold(world, operator, kind, ["j0001"])
    missed = [f"{point.moment} {point.call}" for point in points if not point.hit]
    assert [point for point in points if point.hit and point.call.writes], "not even the lease was written"
    assert len(missed) < len(points) / 4, missed
    writes = [call for call in chosen if call.writes]
    found = {"calls": len(chosen), "writes": len(writes), "kills": len(points) - len(missed), "missed": missed}
    keep("matrix", f"{kind} start", **found, seconds=time.monotonic() - began)
