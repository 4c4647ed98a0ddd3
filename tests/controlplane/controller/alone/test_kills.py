"""The operator killed at every call of every operation: the end is as if nothing had happened.

`make test` does it to the writes of some operations, `make kill-matrix` (KILLS=full) to all calls of all, and writes
docs/kill-matrix.md.
"""

import time
from typing import Any

import pytest
from chaos import Point, World
from kill_report import keep
from operations import FULL, KINDS, OPERATIONS, Run, hold

from devcluster.faultproxy import FaultProxy

SHORT = [("DPOJob", "create"), ("GRPOJob", "succeed"), ("SFTJob", "suspend")]
CASES = [(kind, name) for kind in KINDS for name in OPERATIONS] if FULL else SHORT


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_killed_at_any_call_it_comes_to_the_same_end(
    kind: str, name: str, world: World, quick_operator: Any, proxy: FaultProxy
) -> None:
    operator, began = quick_operator, time.monotonic()
    operator.start()
    run = Run(world, operator, proxy, kind, OPERATIONS[name])
    calls = run.reference("j0000")
    chosen = calls if FULL else [call for call in calls if call.writes]
    places = [(moment, call) for call in chosen for moment in ("before", "after")]
    points = [Point(f"j{number:04d}", call, moment) for number, (moment, call) in enumerate(places, 1)]
    run.disturbed(points)
    hold(world, operator, kind, [point.job for point in points])
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
