"""Pods that are killed at random instants, and what must hold after each kill."""

import fcntl
import hashlib
import json
import os
import random
import signal
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer_kit import (
    Warm,
    conversations,
    free_port,
    job_file,
    metrics,
    preference_pairs,
    prompts,
    wait_for,
    write_jsonl,
)

from trl_contract.report import ExitRecord
from trl_trainer.launch import records

VOLATILE = {"time", "num_tokens", "step_time"}
STEPS = 6
TOLERANCE = 1e-6
GONE_SECONDS = 120.0
"""A pod that is not gone so long after its kill hangs."""

REWARDS = [{"name": "short", "length": {"target": 5}}, {"name": "alike", "similarity": {"column": "answer"}}]
GENERATION = {"generation": {"maxCompletionLength": 8}, "rewards": REWARDS}
ADAPTER = {"peft": {"method": "lora", "r": 4}}


@dataclass(frozen=True)
class Case:
    name: str
    kind: str
    world: int
    spec: dict[str, Any]


CASES = {
    case.name: case
    for case in (
        Case("sft-full-2", "SFTJob", 2, {}),
        Case(
            "sft-lora-1", "SFTJob", 1, {**ADAPTER, "evaluation": {"enabled": True, "everySteps": 2, "maxExamples": 4}}
        ),
        Case("reward-full-1", "RewardJob", 1, {}),
        Case("reward-lora-2", "RewardJob", 2, ADAPTER),
        Case("dpo-full-2", "DPOJob", 2, {"evaluation": {"enabled": True, "maxExamples": 4}}),
        Case("dpo-lora-2", "DPOJob", 2, {**ADAPTER, "checkpoint": {"everySteps": 1}}),
        Case("dpo-full-1", "DPOJob", 1, {"checkpoint": {"everySteps": 3}}),
        Case("grpo-full-2", "GRPOJob", 2, {"grpo": {**GENERATION, "numIterations": 2}}),
        Case("grpo-lora-1", "GRPOJob", 1, {**ADAPTER, "grpo": GENERATION}),
    )
}
ROWS = {"SFTJob": conversations, "RewardJob": preference_pairs, "DPOJob": preference_pairs, "GRPOJob": prompts}

FAULTS = {
    "rank": "SIGKILL of one rank",
    "launcher": "SIGKILL of torchrun (its stand-in)",
    "supervisor": "SIGKILL of the supervisor",
    "pod": "SIGKILL of all processes of the pod",
    "term": "SIGTERM to the supervisor",
    "term-rank": "SIGTERM to one rank",
}


def reasons(fault: str, activity: str) -> tuple[str | None, ...]:
    """What the termination message may say, if it is there and no success."""
    if not fault.startswith("term"):
        return (None, "Unknown", "PeerLost")
    # A rank that is hit before it has a handler ends as if it were killed; so does one that waits for it in native
    # code when the processes meet, which the launcher ends after a while.
    early = fault == "term-rank" and activity in ("starting", "loading")
    return (None, "Preempted", "Unknown") if early else (None, "Preempted")


def start(warm: Warm, job: Path, world: int) -> "Pod":
    base = warm.place()
    (base / "alive").touch()
    pod = Pod(warm.ask({"job": str(job), "world": world, "port": free_port(), "base": str(base)}), base)
    wait_for((base / "locked").exists, 60)
    return pod


class Pod:
    """The supervisor of one attempt and all processes below it."""

    def __init__(self, pid: int, base: Path) -> None:
        self.pid = pid
        self.base = base

    @property
    def gone(self) -> bool:
        """Whether the last process has ended: each holds the lock that the first one took."""
        with (self.base / "alive").open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    @property
    def activity(self) -> str:
        path = self.base / "activity"
        return path.read_text() or "starting" if path.exists() else "starting"

    @property
    def log(self) -> str:
        return (self.base / "log").read_text()[-6000:] if (self.base / "log").exists() else ""

    def strike(self, fault: str, rng: random.Random) -> bool:
        """Inject `fault`; False if there is nobody left to hit, or not yet."""
        if self.gone:
            # The supervisor's number may be another process's by now.
            return False
        below = descendants(self.pid)
        ranks = [pid for pid in below if not descendants(pid)]
        targets = {
            "rank": rng.sample(ranks, min(1, len(ranks))),
            "launcher": below[:1],
            "supervisor": [self.pid],
            "pod": [self.pid, *below],
            "term": [self.pid],
            "term-rank": rng.sample(ranks, min(1, len(ranks))),
        }[fault]
        number = signal.SIGTERM if fault.startswith("term") else signal.SIGKILL
        struck = False
        for pid in targets:
            # A process that has ended and waits to be reaped cannot be hit.
            if is_alive(pid):
                os.kill(pid, number)
                struck = True
        return struck

    def watch(self, seconds: float) -> None:
        """Return after `seconds`, or when the pod is gone."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.gone:
            time.sleep(0.005)

    def wait(self, seconds: float = GONE_SECONDS) -> None:
        wait_for(lambda: self.gone, seconds, lambda: f"the pod hangs\n{self.log}")

    def record(self) -> ExitRecord | None:
        """The termination message, if the supervisor lived to write it; its exit code must agree with it."""
        if not (self.base / "code").exists():
            return None
        record = ExitRecord.model_validate_json((self.base / "termination-log").read_text())
        assert int((self.base / "code").read_text()) == records.exit_code(record)
        return record


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, parents before children."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


@dataclass
class Whole:
    """A run that nobody disturbed."""

    seconds: float
    curve: dict[int, dict[str, float]]
    weights: dict[str, Any]


@dataclass
class Kill:
    """One fault that hit a living process."""

    case: str
    chain: int
    attempt: int
    fault: str
    after: float
    activity: str
    newest: int
    """Step of the newest checkpoint that verifies, when the dust has settled."""


@dataclass
class Result:
    kills: list[Kill] = field(default_factory=list)
    chains: int = 0
    ends: int = 0
    """Chains that came to their end and were compared with the undisturbed run."""
    torn: int = 0
    """Checkpoint folders without a whole manifest that were left behind, and never loaded."""


def prepare(folder: Path, model: Path, case: Case, attempt: int) -> Path:
    folder.mkdir(exist_ok=True)
    if attempt == 0:
        write_jsonl(folder / "train.jsonl", ROWS[case.kind](40))
    spec = {"evaluation": {"enabled": False}, **case.spec, "training": {"maxSteps": STEPS}}
    return job_file(folder, model, case.kind, spec=spec, attempt=attempt, numProcPerNode=case.world)


def whole(warm: Warm, folder: Path, model: Path, case: Case) -> Whole:
    began = time.monotonic()
    pod = start(warm, prepare(folder, model, case, 0), case.world)
    pod.wait(240)
    record = pod.record()
    assert record is not None, pod.log
    assert record.outcome == "Succeeded", f"{record}\n{pod.log}"
    return Whole(time.monotonic() - began, curve(folder), weights(folder))


def curve(folder: Path) -> dict[int, dict[str, float]]:
    """What was logged at each step; a step that is there twice is a defect."""
    lines = [line for line in metrics(folder) if "loss" in line]
    found = {line["step"]: {n: v for n, v in line.items() if n not in VOLATILE} for line in lines}
    assert len(found) == len(lines), f"steps are logged twice: {[line['step'] for line in lines]}"
    return found


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "storage" / "uid-1" / "final" / "model.safetensors")


def newest(folder: Path) -> tuple[int, int]:
    """Return the step of the newest whole checkpoint (0: none), and how many folders are not whole. Nothing of the
    trainer is used here: a second opinion on what a manifest promises."""
    whole_ones, torn = [0], 0
    for path in (folder / "storage" / "uid-1").glob("checkpoint-*"):
        try:
            manifest = json.loads((path / "MANIFEST.json").read_text())
            good = all(
                hashlib.sha256((path / file["path"]).read_bytes()).hexdigest() == file["sha256"]
                for file in manifest["files"]
            )
        except (OSError, ValueError):
            good = False
        whole_ones += [manifest["step"]] if good else []
        torn += not good
    return max(whole_ones), torn


def check_equal(found: Path, expected: Whole) -> None:
    """The final weights and every logged value are those of the undisturbed run."""
    logged = curve(found)
    assert logged.keys() == expected.curve.keys() == set(range(1, STEPS + 1))
    for step, values in expected.curve.items():
        assert logged[step].keys() == values.keys()
        for name, value in values.items():
            assert abs(logged[step][name] - value) <= TOLERANCE, (step, name, logged[step][name], value)
    tensors = weights(found)
    assert tensors.keys() == expected.weights.keys()
    for name, tensor in expected.weights.items():
        assert (tensors[name] - tensor).abs().max().item() <= TOLERANCE, name


def check_resumed(folder: Path, began: datetime, expected_step: int) -> None:
    """Whatever the attempt trained, it began right after the newest whole checkpoint; steps before it stay logged."""
    lines = [line for line in metrics(folder) if "loss" in line]
    fresh = [line["step"] for line in lines if datetime.fromisoformat(line["time"]) >= began]
    assert not fresh or min(fresh) == expected_step + 1, f"began at {min(fresh)}, the newest was {expected_step}"
    kept = {line["step"] for line in lines}
    assert kept >= set(range(1, expected_step + 1)), f"{sorted(kept)} are logged, {expected_step} is saved"


def chain(
    warm: Warm,
    folder: Path,
    model: Path,
    case: Case,
    expected: Whole,
    rng: random.Random,
    result: Result,
    kills: int,
) -> None:
    """Kill and restart one job up to `kills` times, let it end, and compare it with the undisturbed run."""
    step, struck, result.chains = 0, 0, result.chains + 1
    for attempt in range(kills + 2):
        began = datetime.now().astimezone()
        pod = start(warm, prepare(folder, model, case, attempt), case.world)
        after, fault = rng.uniform(0, expected.seconds), rng.choice(list(FAULTS))
        hit = False
        if struck < kills:
            pod.watch(after)
            activity = pod.activity
            hit = pod.strike(fault, rng)
        pod.wait()
        step = check_after(folder, began, step, expected, result)
        record = pod.record()
        if hit:
            struck += 1
            result.kills.append(Kill(case.name, result.chains, attempt, fault, round(after, 3), activity, step))
            reason = record.reason if record is not None and record.outcome != "Succeeded" else None
            assert reason in reasons(fault, activity), f"{fault}, {activity}: {record}\n{pod.log}"
        if record is not None and record.outcome == "Succeeded":
            check_equal(folder, expected)
            result.ends += 1
            return
        assert hit, f"failed without being touched: {record}\n{pod.log}"
    raise AssertionError(f"{case.name} does not end")


def check_after(folder: Path, began: datetime, step: int, expected: Whole, result: Result) -> int:
    """What must hold whenever the last process of an attempt is gone; return the step of the newest checkpoint."""
    check_resumed(folder, began, step)
    found, torn = newest(folder)
    result.torn += torn
    assert found >= step, f"the checkpoint of step {step} is lost; the newest is of step {found}"
    if (folder / "storage" / "uid-1" / "final").exists():
        check_equal(folder, expected)
    return found
