"""Jobs that share a quota while others preempt them and the operator is killed: all succeed, at no cost.

`make test-queues` (QUEUES=full) has 20 jobs, 10 preemptions and 5 kills, and writes docs/queue-test.md.
"""

import os
import random
import time
from collections import Counter, defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

from chaos import World
from killing import still
from operations import record, succeed

from devcluster.fakenode import Exit
from devcluster.paths import REPOSITORY

FULL = os.environ.get("QUEUES") == "full"
JOBS, PREEMPTIONS, KILLS, QUOTA = (20, 10, 5, 2) if FULL else (4, 1, 1, 2)
KIND, SEED = "DPOJob", 20261127
SECONDS = 600 if FULL else 120
GRACE = 0.5
"""How long a pod takes to end after SIGTERM."""
AT_LEAST = 1.0
"""How long a job runs, preempted or not, before it is done."""


def names(world: World, prefix: str, phase: str) -> list[str]:
    found = [name for name in world.uids if name.startswith(prefix)]
    return [name for name in found if world.status(KIND, name).get("phase") == phase]


class Storm:
    """One step after the other, until all jobs have ended."""

    def __init__(self, world: World, operator: Any) -> None:
        self.world, self.operator = world, operator
        self.random = random.Random(SEED)
        # A preemption is the creation of a job of high priority while two of low priority run.
        self.plan = ["preempt"] * PREEMPTIONS + ["kill"] * KILLS
        self.random.shuffle(self.plan)
        self.next = time.monotonic()
        self.since: dict[str, float] = {}
        self.preempting = 0

    def create(self, name: str, priority: str) -> None:
        queue = {"name": "team", "priorityClass": priority}
        self.world.create(KIND, name, {"queue": queue, "resources": {"requests": {"cpu": 1}}}, maxRestarts=0)

    def step(self) -> bool:
        """Do what is due; return whether all is over."""
        low, high = (names(self.world, prefix, "Running") for prefix in ("j00", "j01"))
        if self.plan and time.monotonic() > self.next and self._due(self.plan[0], low):
            self.plan.pop(0)
            self.next = time.monotonic() + self.random.uniform(0.0, 2.0)
        for name in low + high if self._is_calm() else high:
            since = self.since.setdefault(name, time.monotonic())
            if time.monotonic() > since + AT_LEAST:
                succeed(self.world, KIND, name)
        if self.operator.process.poll() is not None:
            self.operator.launch()
        return not self.plan and len(names(self.world, "j", "Succeeded")) == JOBS

    def _is_calm(self) -> bool:
        """Nothing more is to be preempted."""
        return not self.plan and self._waits() == 0

    def _waits(self) -> int:
        """How many jobs of high priority have yet to be done."""
        return self.preempting - len(names(self.world, "j01", "Succeeded"))

    def _due(self, what: str, low: list[str]) -> bool:
        if what == "kill":
            self.operator.kill()
        elif len(low) == QUOTA and self._waits() == 0:
            self.create(f"j01{self.preempting:02}", "high")
            self.preempting += 1
        else:
            return False
        return True


def test_all_jobs_come_to_their_end_through_a_quota_preemptions_and_kills(
    world: World, make_operator: Any, zygote: Any, quota: Any, local_queue: Any, priorities: None
) -> None:
    world.node.sigterm = Exit(143, record("Preempted", reason="Preempted", message="SIGTERM"), after_seconds=GRACE)
    quota(QUOTA)
    local_queue("team")
    operator = make_operator()
    operator.zygote = zygote
    operator.start()
    storm, began = Storm(world, operator), time.monotonic()
    for number in range(JOBS - PREEMPTIONS):
        storm.create(f"j00{number:02}", "low")
    while not storm.step():
        assert time.monotonic() < began + SECONDS, {name: world.status(KIND, name) for name in world.uids}
        time.sleep(0.05)
    seconds = time.monotonic() - began
    still(world, operator)
    history = world.history()
    assert not history.broken, history.broken
    ends = [world.status(KIND, name) for name in world.uids]
    assert all(status.get("retry", {}).get("counted", 0) == 0 for status in ends)
    evictions = sum(status["restarts"] for status in ends)
    assert evictions >= PREEMPTIONS
    incarnations = pods_of_attempts(world)
    assert max(incarnations.values()) == 1, incarnations
    assert len(incarnations) == len(ends) + evictions
    if FULL:
        attempts = Counter(status["attempt"] for status in ends)
        report(REPOSITORY / "docs/queue-test.md", seconds, evictions, attempts)


def pods_of_attempts(world: World) -> Counter[tuple[str, str]]:
    """How many pods each attempt has had, by job and attempt."""
    found: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for _, _, obj in world.events():
        if obj["kind"] == "Pod":
            labels = obj["metadata"]["labels"]
            found[labels["trl-operator.io/job-name"], labels["trl-operator.io/attempt"]].add(obj["metadata"]["uid"])
    return Counter({attempt: len(pods) for attempt, pods in found.items()})


def report(path: Path, seconds: float, evictions: int, attempts: Counter[int]) -> None:
    told = ", ".join(f"{count} in attempt {attempt}" for attempt, count in sorted(attempts.items()))
    path.write_text(f"""# Queue test

{JOBS} jobs through a Kueue quota of {QUOTA}, {PREEMPTIONS} of them of high priority, created at random instants while
{QUOTA} of low priority ran, and {KILLS} kills of the operator (SIGKILL) in between: all succeeded, though `maxRestarts`
was 0, and all invariants held at every event.

| | |
|---|---|
| attempts that Kueue has ended | {evictions} |
| jobs that succeeded | {told} |
| pods of an attempt, at most | 1 |
| seconds | {seconds:.0f} |

`make test-queues`: API server, training-operator and Kueue are real, the node is a fake one: the trainer does not run,
and no results are compared. Seed {SEED}, {datetime.now().date()}, {os.cpu_count()} cores, other work beside it.
""")  # fmt: skip
