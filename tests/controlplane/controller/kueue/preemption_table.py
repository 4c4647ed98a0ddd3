"""What preemptions cost, with and without kueue.checkpointAwarePreemption; docs/preemption.md is its report.

`make bench-preemption`: API server, training-operator, Kueue and the operator are real, and the node is a fake one, on
which a clock counts the steps of each job, publishes its checkpoints and forgets what came after the last one.
"""

import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from statistics import mean, median
from typing import Any

import pytest
from chaos import World
from operations import record, succeed

from devcluster.controlplane import ControlPlane
from devcluster.fakenode import Exit
from devcluster.paths import REPOSITORY

KIND, SEED, LIMIT_SECONDS = "DPOJob", 20261127, 420
QUEUES, JOBS, PREEMPTIONS = 10, 3, 5
"""Queues, each with so many jobs, as many as its quota lets run, and so many preemptions one after the other."""
EVERY = 5.0
"""Real seconds between two checkpoints."""
SPEED = 15 * 60 / EVERY
"""Seconds of the jobs' time in a real one: their checkpoints are 15 minutes apart."""
STEP = 0.02
"""Real seconds of a step."""
HOLD = 0.5
"""Real seconds that a job of high priority runs."""
RESULTS: dict[bool, "Results"] = {}


@dataclass
class Results:
    lost: list[float] = field(default_factory=list)
    """Seconds of the jobs' time that each preemption has lost."""
    unsaved: int = 0
    """Preemptions of attempts without a checkpoint."""
    victims: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    """Steps that were made, those that were lost among them."""


@dataclass
class Training:
    """The step clock of one job."""

    world: World
    name: str
    pod: str = ""
    since: float = 0.0
    first: int = 0
    """Step that the attempt has begun with."""
    saved: list[dict[str, Any]] = field(default_factory=list)
    in_attempt: int = 0
    """Checkpoints of the attempt."""

    def look(self, results: Results) -> None:
        """Go on to now."""
        found = [pod for pod in self.world.pods(self.name) if pod["status"]["phase"] == "Running"]
        alive = [pod["metadata"]["uid"] for pod in found if "deletionTimestamp" not in pod["metadata"]]
        step = self.first + int((time.monotonic() - self.since) / STEP)
        if self.since and self.pod not in alive:
            self._end(step, results)
        elif alive and not self.since:
            self.pod, self.since, self.in_attempt = alive[0], time.monotonic(), 0
            self.first = self.saved[-1]["step"] if self.saved else 0
        elif self.since and time.monotonic() > self.since + (self.in_attempt + 1) * EVERY:
            self._save(step)

    def _save(self, step: int) -> None:
        self.in_attempt += 1
        time_text = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.saved = [*self.saved[-2:], {"step": step, "path": f"checkpoints/step-{step}", "time": time_text}]
        self.world.patch_status(KIND, self.name, checkpoints=self.saved)

    def _end(self, step: int, results: Results) -> None:
        kept = self.saved[-1]["step"] if self.saved else 0
        results.lost.append((step - kept) * STEP * SPEED)
        results.unsaved += self.in_attempt == 0
        results.victims[self.name] += 1
        results.steps += step - self.first
        self.since = 0.0


class Queue:
    """Jobs of low priority that always want all of a quota, and one of high priority now and then."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number, self.random = world, number, random.Random(SEED + number)
        self.jobs = [Training(world, f"j{number}0{job:02}") for job in range(JOBS)]
        self.high, self.running_since, self.made = "", 0.0, 0
        self.next = 0.0
        for job in self.jobs:
            self.create(job.name, "low")

    def create(self, name: str, priority: str) -> None:
        queue = {"name": f"team-{self.number}", "priorityClass": priority}
        spec = {"queue": queue, "resources": {"requests": {"cpu": 1}}, "checkpoint": {"everyMinutes": EVERY / 60}}
        self.world.create(KIND, name, spec, maxRestarts=0)

    def step(self, results: Results) -> bool:
        """Do what is due; return whether all preemptions are over."""
        for job in self.jobs:
            job.look(results)
        now = time.monotonic()
        if self.high:
            phase = self.world.status(KIND, self.high).get("phase")
            if phase == "Running":
                self.running_since = self.running_since or now
                if now > self.running_since + HOLD:
                    succeed(self.world, KIND, self.high)
            elif phase == "Succeeded":
                self.high, self.running_since, self.next = "", 0.0, 0.0
        elif self.made < PREEMPTIONS and all(job.since for job in self.jobs):
            # A preemption is as likely at any instant between two checkpoints as at any other.
            self.next = self.next or now + self.random.uniform(0, 2 * EVERY)
            if now > self.next:
                self.high = f"j{self.number}1{self.made:02}"
                self.made += 1
                self.create(self.high, "high")
        return self.made == PREEMPTIONS and not self.high


@pytest.fixture
def make_operator(control_plane: ControlPlane, namespace: str, new_operator: Any, install_chart: Any) -> Any:
    values = ("kueue.enabled=true", "kueue.checkpointAwarePreemption=true", "otherBackends={trainjob}")
    install_chart(control_plane, namespace, f"scope.namespaces={{{namespace}}}", *values)
    return partial(new_operator, KUEUE="true", OTHER_BACKENDS="trainjob")


@pytest.mark.parametrize("aware", [False, True], ids=["without", "with"])
def test_preemptions(
    world: World, make_operator: Any, namespace: str, control_plane: ControlPlane, kueue_object: Any, priorities: None,
    aware: bool,
) -> None:  # fmt: skip
    world.node.sigterm = Exit(143, record("Preempted", reason="Preempted", message="SIGTERM"), after_seconds=0.2)
    flavors = [{"name": namespace, "resources": [{"name": "cpu", "nominalQuota": JOBS}]}]
    spec = {"resourceGroups": [{"coveredResources": ["cpu"], "flavors": flavors}], "namespaceSelector": {},
            "preemption": {"withinClusterQueue": "LowerPriority"}}  # fmt: skip
    control_plane.apply(kueue_object("ResourceFlavor", namespace, spec={}))
    for number in range(QUEUES):
        local = kueue_object("LocalQueue", f"team-{number}", spec={"clusterQueue": f"{namespace}-{number}"})
        local["metadata"]["namespace"] = namespace
        control_plane.apply(kueue_object("ClusterQueue", f"{namespace}-{number}", spec=spec), local)
    make_operator(CHECKPOINT_AWARE_PREEMPTION=str(aware).lower()).start()
    results = RESULTS[aware] = Results()
    queues, deadline = [Queue(world, number) for number in range(QUEUES)], time.monotonic() + LIMIT_SECONDS
    while over := [queue.step(results) for queue in queues]:
        if all(over):
            break
        assert time.monotonic() < deadline, [(queue.made, queue.high) for queue in queues]
        time.sleep(0.03)
    for job in (job for queue in queues for job in queue.jobs if job.since):
        results.steps += int((time.monotonic() - job.since) / STEP)
    assert len(results.lost) >= QUEUES * PREEMPTIONS
    if len(RESULTS) == 2:
        report()


def report() -> None:
    rows = {
        "attempts that Kueue preempted": lambda found: f"{len(found.lost)}",
        "of these without a checkpoint of their own": lambda found: f"{found.unsaved}",
        "seconds of training lost per preemption, mean": lambda found: f"{mean(found.lost):.0f}",
        "median": lambda found: f"{median(found.lost):.0f}",
        "most": lambda found: f"{max(found.lost):.0f}",
        "part of all training that was lost": lambda found: f"{sum(found.lost) / (found.steps * STEP * SPEED):.0%}",
        "most preemptions of one job": lambda found: f"{max(found.victims.values())}",
    }
    table = "\n".join(f"| {name} | {tell(RESULTS[False])} | {tell(RESULTS[True])} |" for name, tell in rows.items())
    (REPOSITORY / "docs/preemption.md").write_text(f"""# What preemptions cost

{QUEUES} queues with a quota of {JOBS}, each full of {JOBS} jobs of low priority that publish a checkpoint every 15 minutes; {PREEMPTIONS}
jobs of high priority in each, one after the other, each up to 30 minutes (evenly spread) after the jobs have come back. The grace is
too short for a checkpoint: what came after the last one is lost.

| `kueue.checkpointAwarePreemption` | false | true |
|---|---|---|
{table}

`make bench-preemption`: API server, training-operator, Kueue and the operator are real; the node is a fake one with a step clock, of
which a real second is {SPEED:.0f} seconds of the jobs' time, so that the reactions of all of them, some tenths of a second, count for up
to a minute. Seed {SEED}, {datetime.now().date()}, {os.cpu_count()} cores, other work beside it.
""")  # noqa: E501
