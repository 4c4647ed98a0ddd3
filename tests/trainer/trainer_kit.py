"""What the trainer's tests share: data sets, job files, and ways to run ranks."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_contract.jobfile import JobFile
from trl_contract.report import ExitRecord
from trl_contract.resolve import resolve
from trl_trainer.launch import records

SEED = 7
PROMPTS = ("where is my order", "cancel my plan", "refund this item", "reset the password", "change my address")
POLITE = ("thank you , we will gladly do that now", "of course , we have sent it to you", "happy to help , it is done")
CURT = ("no", "wait", "not my job", "ask someone else")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def preference_pairs(count: int, seed: int = SEED) -> list[dict[str, Any]]:
    """Return conversational preference pairs: polite replies chosen, curt ones rejected."""
    rng = random.Random(seed)
    return [
        {
            "prompt": [{"role": "user", "content": rng.choice(PROMPTS)}],
            "chosen": [{"role": "assistant", "content": rng.choice(POLITE)}],
            "rejected": [{"role": "assistant", "content": rng.choice(CURT)}],
        }
        for _ in range(count)
    ]


def conversations(count: int, seed: int = SEED) -> list[dict[str, Any]]:
    """Return conversations of one polite reply each."""
    return [{"messages": [*row["prompt"], *row["chosen"]]} for row in preference_pairs(count, seed)]


def prompts(count: int, seed: int = SEED) -> list[dict[str, Any]]:
    """Return prompts with a reference answer in a column of their own."""
    return [{"prompt": row["prompt"], "answer": row["chosen"][0]["content"]} for row in preference_pairs(count, seed)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def job_file(folder: Path, model: Path, kind: str = "DPOJob", *, spec: dict[str, Any], **fields: Any) -> Path:
    """Write a job file into `folder` (its storage is `folder/storage`) and return its path.

    `spec` is laid over a small default spec, section by section; train.jsonl in `folder` holds the rows.
    """
    base: dict[str, Any] = {
        "model": {"volume": {"claimName": "model", "path": "base"}},
        "dataset": {"train": {"volume": {"claimName": "data", "path": "train.jsonl"}}},
        "training": {
            "maxSteps": 8, "perDeviceBatchSize": 4, "gradientAccumulationSteps": 1, "learningRate": 2e-3,
            "loggingSteps": 1,
        },
        "peft": {"method": "none"},
        "checkpoint": {"everySteps": 2},
        "evaluation": {"maxExamples": 8},
    }  # fmt: skip
    for section, values in spec.items():
        merged = {**base[section], **values} if isinstance(values, dict) and section in base else values
        base[section] = {k: v for k, v in merged.items() if v is not None}
    paths = {"storage": str(folder / "storage"), "model": str(model), "train": str(folder / "train.jsonl")}
    (folder / "storage").mkdir(exist_ok=True)
    job = {
        "contractVersion": 1, "kind": kind, "namespace": "default", "name": "job", "uid": "uid-1", "attempt": 0,
        "numNodes": 1, "numProcPerNode": 2, "paths": paths, "spec": base, **fields,
    }  # fmt: skip
    path = folder / f"job-{job['attempt']}.json"
    path.write_text(json.dumps(job))
    return path


def mounted(job: Path, attempt: int, **adapted: int) -> Path:
    """The same job file as the operator mounts it: resolved and for all attempts, with the attempt's file beside it,
    which says what of the job is `adapted` too."""
    file = JobFile.model_validate_json(job.read_text()).model_copy(update={"contract_version": 2})
    folder = job.parent / f"mounted-{attempt}"
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(resolve(file).to_wire()))
    (folder / "attempt.json").write_text(json.dumps({"attempt": attempt, **adapted}))
    return folder / "job.json"


def resumed(job: Path, earlier: Path) -> Path:
    """The job file at `job`, which now goes on from the job whose folder is `earlier`."""
    written = json.loads(job.read_text())
    written["paths"]["resumeFrom"] = str(earlier)
    job.write_text(json.dumps(written))
    return job


@dataclass
class Ended:
    """How the ranks of one attempt ended."""

    codes: list[int]
    records: dict[int, ExitRecord]
    logs: list[str]


class Ranks:
    """The ranks of one attempt, forked from the warm process."""

    def __init__(self, pids: list[int], command: dict[str, Any]) -> None:
        self.pids = pids
        self._command = command

    def logs(self) -> list[str]:
        return [Path(f"{self._command['log']}.{rank}").read_text() for rank in range(len(self.pids))]

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        os.kill(self.pids[rank], number)

    def ended(self) -> bool:
        return Path(self._command["result"]).exists()

    def wait(self, seconds: float = 120) -> Ended:
        result = Path(self._command["result"])
        wait_for(self.ended, seconds, lambda: "\n".join(self.logs()))
        found = records.read(Path(self._command["records"]))
        return Ended(json.loads(result.read_text()), found, self.logs())


class Warm:
    """Forks ranks that run the trainer's own main."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, socket: str) -> None:
        self._process = process
        self._folder = folder
        self._socket = socket
        self._count = 0
        self._ready = False

    def place(self) -> Path:
        """Return a new folder for a run."""
        self._count += 1
        base = self._folder / str(self._count)
        base.mkdir()
        return base

    def ask(self, command: dict[str, Any]) -> Any:
        self._wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def _wait(self) -> None:
        """Return when the imports are done, which began before anybody needed them."""
        assert self._process.stdout is not None
        if not self._ready:
            assert self._process.stdout.readline() == "ready\n"
            self._ready = True

    def environment(self) -> dict[str, str]:
        """Return the variables with which every `python -m trl_trainer --job` is forked from here, whoever starts it:
        supervisor and torchrun are the real ones, and nobody waits for imports."""
        self._wait()
        return {"PYTHONPATH": str(self._folder / "path"), "TRL_WARM": self._socket}

    def start(
        self,
        job: Path,
        world: int = 2,
        environment: dict[str, str] | None = None,
        prelude: Sequence[str] = (),
        patience: float = 60,
    ) -> Ranks:
        """`patience`: seconds that the other ranks get to end by themselves when one has failed, before SIGTERM. Where
        one hangs, give none."""
        base = self.place()
        (base / "records").mkdir()
        command = {
            "job": str(job), "world": world, "port": free_port(), "records": str(base / "records"),
            "log": str(base / "log"), "result": str(base / "result.json"), "environment": environment or {},
            "prelude": list(prelude), "patience": patience,
        }  # fmt: skip
        return Ranks(self.ask(command), command)

    def run(self, job: Path, world: int = 2, seconds: float = 120, **options: Any) -> Ended:
        return self.start(job, world, **options).wait(seconds)


@contextmanager
def warm_process(folder: Path) -> Iterator[Warm]:
    """A process that has imported torch and TRL, from which ranks are forked; its files are below `folder`."""
    (folder / "path").mkdir(parents=True)
    (folder / "path" / "sitecustomize.py").symlink_to(Path(__file__).with_name("instead.py"))
    variables = {
        **os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "datasets"), "HF_HUB_OFFLINE": "1",
        "DISABLE_KUBEFLOW_INTEGRATION": "TRUE", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    name = f"trl-warm-{uuid.uuid4().hex}"
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("warm.py")), name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables,
    )  # fmt: skip
    assert process.stdin is not None
    yield Warm(process, folder, name)
    process.stdin.close()
    process.wait(120)


@dataclass
class Supervised:
    """A finished run of the real supervisor."""

    code: int
    record: ExitRecord
    log: str


def supervise(job: Path, folder: Path, environment: dict[str, str] | None = None, seconds: float = 240) -> Supervised:
    """Run the real supervisor, with the real torchrun, to its end."""
    process = start_supervisor(job, folder, environment)
    log, _ = process.communicate(timeout=seconds)
    message = (folder / "termination-log").read_text()
    assert len(message.encode()) <= 4096
    return Supervised(process.returncode, ExitRecord.model_validate_json(message), log)


def start_supervisor(job: Path, folder: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    variables = {
        **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "TRL_TERMINATION_LOG": str(folder / "termination-log"), **(environment or {}),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "trl_trainer.supervisor", "--job", str(job)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables,
    )  # fmt: skip


def start_stand_in(
    folder: Path, job: Path, rank: str, environment: dict[str, str] | None = None, peer_seconds: float | None = None
) -> subprocess.Popen[str]:
    """Supervisor and torchrun for real; the ranks run the code `rank` instead of ours, so that this takes seconds. Its
    last line of output is the record."""
    (folder / "trl_trainer_stand_in.py").write_text(rank)
    code = f"""
import sys
from pathlib import Path
from trl_trainer import supervisor
from trl_trainer.checkpoints import fence
job = supervisor.read_job({str(job)!r})
fence.claim(Path(job.paths.storage) / job.uid, 0)
command = supervisor.command
stand_in = lambda *a: [word.replace("trl_trainer", "trl_trainer_stand_in") for word in command(*a)]
supervisor.command = stand_in
supervisor.PEER_SECONDS = {peer_seconds} or supervisor.PEER_SECONDS
print(supervisor.supervise(job, "job.json", supervisor.Stop(300)).model_dump_json())
"""
    variables = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=variables)


def supervise_stand_in(folder: Path, model: Path, rank: str) -> ExitRecord:
    process = start_stand_in(folder, job_file(folder, model, spec={}), rank)
    return stand_in_record(process, 120)


def stand_in_record(process: subprocess.Popen[str], seconds: float) -> ExitRecord:
    """Return the record when the supervisor has ended."""
    try:
        out, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return ExitRecord.model_validate_json(out.splitlines()[-1])


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float, explain: Callable[[], str] = str) -> None:
    """Return when `condition` holds; AssertionError with `explain()` after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s\n{explain()}"
        time.sleep(0.02)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl."""
    path = folder / "storage" / "uid-1" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def at_step(step: int, action: str, rank: int = 1, saved: int | None = None) -> list[str]:
    """Return a prelude that makes `rank` run `action` when it enters step `step` (before its forward pass), and the
    checkpoint of step `saved` is published."""
    return [
        f"""
if rank == {rank}:
    import os, signal, time
    from trl_trainer.checkpoints.schedule import Schedule
    from trl_trainer.launch import watchdog
    original = Schedule.on_step_begin
    def on_step_begin(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if state.global_step + 1 == {step}:
            end = time.monotonic() + 60
            while {saved} and not (self._run.work / "checkpoint-{saved}/MANIFEST.json").exists():
                assert time.monotonic() < end, "checkpoint {saved} is not published"
                time.sleep(0.01)
            {action}
    Schedule.on_step_begin = on_step_begin
"""
    ]


KILL = "os.kill(os.getpid(), signal.SIGKILL)"

TRAIN_ONLY = """
import os
from trl_trainer.results import export
export.write = lambda *given: os._exit(0)
"""
"""A prelude for what is seen in training itself: each rank ends well when it would export."""

QUICK = "import trl_trainer.checkpoints.schedule as s; s.SLOW_SECONDS = 1000"
"""A prelude: no step is slow, on any machine."""

STALL = """
from trl_trainer.launch import watchdog
watchdog.OTHERS_SECONDS = 0.2
start = watchdog.Watchdog.start
def kept(self):
    watchdog.limit = lambda seconds: setattr(self, "_seconds", seconds)
    start(self)
watchdog.Watchdog.start = kept
"""
"""A prelude: from `watchdog.limit(seconds)` on, so much without a sign of life is a stall. What comes before may take
as long as it does on this machine."""
