"""Kills and faults by chance, over jobs of all kinds: each comes to the end of its script."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from chaos import World
from kill_report import keep
from killing import still
from operations import FULL, KINDS, fail, patch, phase, record, succeed

from devcluster import tools
from devcluster.faultproxy import Delay, FaultProxy, Request, Verdict
from devcluster.paths import REPOSITORY
from devcluster.waiting import wait_for

JOBS, FAULTS, SEED = (50, 500, 1) if FULL else (10, 40, 2)


@dataclass
class Script:
    """What is done to a job of the random run, step by step, and the end that it must come to."""

    kind: str
    name: str
    steps: list[str]
    attempt: int = 0
    resting: bool = False

    @property
    def over(self) -> bool:
        return not self.steps

    def advance(self, world: World) -> None:
        """Do the next step if the job is ready for it."""
        job = world.get(self.kind, self.name)
        if self.resting and phase("Suspended", self.attempt)(job):
            world.patch(self.kind, self.name, suspend=False)
            self.resting = False
        elif not self.resting and phase("Running", self.attempt)(job):
            step = self.steps.pop(0)
            if step in ("fail", "suspend"):
                self.attempt += 1
            self.resting = step == "suspend"
            STEPS[step](world, self.kind, self.name)


def spoil(world: World, kind: str, name: str) -> None:
    world.end_pods(name, 10, record("Failed", reason="DataFormatError", message="row 7 has no chosen", rank=0))


STEPS = {
    "fail": fail,
    "suspend": patch(suspend=True),
    "succeed": succeed,
    "cancel": patch(cancel=True),
    "spoil": spoil,
    "delete": lambda world, kind, name: world.delete(kind, name),
}
ENDS = {"succeed": "Succeeded", "cancel": "Cancelled", "spoil": "Failed", "delete": None}


class Storm:
    """Kills the operator and spoils its calls by chance, so many times."""

    def __init__(self, operator: Any, proxy: FaultProxy, rng: random.Random, left: int) -> None:
        self.operator = operator
        self.proxy = proxy
        self.rng = rng
        self.left = left
        self.done: Counter[str] = Counter()
        self.starts = 1
        self._thaw_at = float("inf")
        self._next = time.monotonic() + 3
        proxy.before, proxy.after = self.before, self.after

    def before(self, request: Request) -> Verdict:
        faults: list[Verdict] = ["reset", 429, 500, 503, Delay(self.rng.uniform(0.1, 3))]
        if request.writes:
            faults.append(409)
        if self.proxy.remembers(request):
            faults += ["stale"] * 3
        return self._strike("kill before", 0.03) or self._fault(faults, request)

    def after(self, request: Request) -> Verdict:
        if request.watches:
            return "pass"
        faults: list[Verdict] = ["reset", Delay(2), "truncate"]
        return self._strike("kill after", 0.03) or self._fault(faults, request)

    def tick(self) -> None:
        """Start the operator if it is dead, as a kubelet would; freeze and cut watches now and then."""
        if self.operator.process.poll() is not None:
            self.operator.launch()
            self.starts += 1
        now = time.monotonic()
        if now > self._thaw_at:
            self.proxy.thaw_watches()
            self._thaw_at = float("inf")
        if now > self._next and self.left > 0:
            self._next = now + self.rng.uniform(2, 5)
            if self._count(self.rng.choice(["watches frozen", "watches cut"])) == "watches cut":
                self.proxy.cut_watches()
            else:
                self.proxy.freeze_watches()
                self._thaw_at = now + 2

    def _count(self, what: str) -> str:
        self.left -= 1
        self.done[what] += 1
        return what

    def _strike(self, what: str, chance: float) -> Verdict | None:
        if self.left <= 0 or self.rng.random() > chance:
            return None
        self._count(what)
        self.operator.kill()
        return "reset"

    def _fault(self, faults: list[Verdict], request: Request) -> Verdict:
        if self.left <= 0 or request.watches or self.rng.random() > 0.08:
            return "pass"
        chosen = self.rng.choice(faults)
        self._count("delay" if isinstance(chosen, Delay) else str(chosen))
        return chosen


def checked(world: World) -> str:
    """What `make invariants` says."""
    folder = tools.binary("kubectl").parent
    environment = {**os.environ, "KUBECONFIG": str(world.plane.kubeconfig), "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [
        sys.executable,
        "-m",
        "devcluster.invariants",
        f"--namespace={world.namespace}",
        "--quiet",
        "--seconds=1",
    ]
    hack = {"PYTHONPATH": str(REPOSITORY / "hack")}
    return subprocess.run(command, env=environment | hack, capture_output=True, text=True, timeout=60).stdout


def test_random_kills_and_faults_change_no_end(world: World, quick_operator: Any, proxy: FaultProxy) -> None:
    operator, began = quick_operator, time.monotonic()
    rng = random.Random(SEED)
    scripts = []
    for number in range(JOBS):
        way = rng.choices(["fail", "suspend"], k=rng.randint(0, 2 if FULL else 1))
        last = rng.choice(["succeed", "succeed", "succeed", "cancel", "spoil", "delete"])
        scripts.append(Script(KINDS[number % 4], f"j{number:04d}", [*way, last]))
    expected = {script.name: (ENDS[script.steps[-1]], script.steps.count("fail")) for script in scripts}
    operator.start()
    storm = Storm(operator, proxy, rng, FAULTS)
    for script in scripts:
        world.create(script.kind, script.name)

    def ended() -> bool:
        storm.tick()
        for script in scripts:
            if not script.over:
                script.advance(world)
        return all(script.over and is_over(script) for script in scripts)

    def is_over(script: Script) -> bool:
        last = expected[script.name][0]
        return (world.get(script.kind, script.name) or {}).get("status", {}).get("phase") == last

    wait_for("all jobs have come to their end", ended, 600 if FULL else 150, 0.1)
    storm.left = 0
    proxy.thaw_watches()
    storm.tick()
    wait_for("the operator is ready", operator.is_ready, 60)
    still(world, operator)
    assert "all invariants hold" in checked(world), "the same, as anybody may ask a cluster"
    history = world.history()
    assert history.broken == []
    for script in scripts:
        status = world.status(script.kind, script.name)
        if status:
            assert (status["attempt"], status["restarts"]) == (script.attempt, expected[script.name][1]), script
        attempts = [attempt for attempt, _ in history.workloads[world.uids[script.name]]]
        assert attempts == list(range(script.attempt + 1)), script
    ends = Counter(last or "deleted" for last, _ in expected.values())
    seconds = time.monotonic() - began
    faults = dict(storm.done.most_common())
    keep("random", f"seed {SEED}", jobs=JOBS, faults=faults, ends=ends, starts=storm.starts, seconds=seconds)
    assert sum(faults.values()) >= FAULTS
