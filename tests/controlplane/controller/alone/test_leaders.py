"""A leader that is frozen at a write, and wakes up when another one leads."""

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from chaos import World, about, through
from kill_report import keep
from killing import Run, still
from operations import FULL, OPERATIONS
from zygote import Zygote

from devcluster.controlplane import ControlPlane
from devcluster.faultproxy import Delay, FaultProxy, Request, Verdict
from devcluster.waiting import wait_for

HELD = [("create", "POST pytorchjobs")]
if FULL:
    HELD += [
        ("create", f"POST {what}") for what in ("persistentvolumeclaims", "configmaps", "networkpolicies", "events")
    ]
    HELD += [("suspend", "DELETE pytorchjobs"), ("cancel", "DELETE pytorchjobs")]
    HELD += [(name, "PATCH dpojobs/status") for name in ("create", "succeed", "fail", "suspend", "resume", "cancel")]
LEASE = {"LEASE_SECONDS": "8", "RENEW_SECONDS": "5", "RETRY_SECONDS": "0.5"}


def test_a_frozen_leader_that_wakes_up_beside_another_harms_nothing(
    world: World, make_operator: Callable[..., Any], zygote: Zygote, control_plane: ControlPlane
) -> None:
    kind, began = "DPOJob", time.monotonic()
    with ExitStack() as stack:
        pairs = []
        for identity in ("first", "second"):
            proxy = stack.enter_context(FaultProxy(control_plane.url, control_plane.ca))
            operator = make_operator(identity, **LEASE)
            operator.zygote = zygote
            through(operator, proxy)
            operator.start()
            pairs.append((operator, proxy))
        for number, (name, call) in enumerate(HELD, 1):
            wait_for("one leads", lambda: any(operator.leads() for operator, _ in pairs), 30)
            pairs.sort(key=lambda pair: not pair[0].leads())
            (leader, proxy), (other, _) = pairs
            run = Run(world, leader, proxy, kind, OPERATIONS[name])
            job = f"j{number:04d}"
            run.prepare([job])
            held = Held(leader, world, job, call)
            proxy.before, proxy.after = held.before, held.after
            run.do(job)
            wait_for(f"{job}: {call} is held", lambda held=held: held.frozen, 30, 0.02)
            wait_for("the other leads", lambda other=other: other.leads(), 40)
            wait_for(f"{job} is done", lambda run=run, job=job: run.operation.done(world.get(kind, job)), 60)
            wait_for("the write has arrived", lambda held=held: held.answer > 0, 60)
            leader.process.send_signal(signal.SIGCONT)
            code = leader.process.wait(timeout=30)
            keep("two leaders", f"{name}: {call}", exit=code, code=held.answer, seconds=time.monotonic() - began)
            assert code == 1
            proxy.before = proxy.after = lambda _: "pass"
            leader.start()
    still(world, other)
    history = world.history()
    assert history.broken == []


class Held:
    """Freezes the leader at a write about a job, which arrives when the lease is another's."""

    def __init__(self, leader: Any, world: World, job: str, call: str) -> None:
        self.leader = leader
        self.world = world
        self.job = job
        self.call = call
        self.write: tuple[str, str, bytes] | None = None
        """Method, path and body of the one that is held: others like it may be under way at the same time."""
        self.answer = 0

    @property
    def frozen(self) -> bool:
        return self.write is not None

    def before(self, request: Request) -> Verdict:
        is_meant = f"{request.method} {request.resource}" == self.call
        if self.frozen or not is_meant or about(request, self.world.names) != self.job:
            return "pass"
        self.write = request.method, request.path, request.body
        self.leader.process.send_signal(signal.SIGSTOP)
        return Delay(float(LEASE["LEASE_SECONDS"]) + 7)

    def after(self, request: Request) -> Verdict:
        if not self.answer and (request.method, request.path, request.body) == self.write:
            self.answer = request.status
        return "pass"
