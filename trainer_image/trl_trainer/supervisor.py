"""PID 1 of the trainer container: starts the ranks, passes signals on, and says at the end how it went.

torchrun returns 1 for everything, so the ranks leave records (records.py) and this process turns them into the
termination message and an exit code by class. It does not import torch: it must be up before the first signal.
"""

import signal

if __name__ == "__main__":
    # What follows takes a while to import, and PID 1 loses a signal that it has no handler for: this one waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

from trl_contract.jobfile import JobFile
from trl_contract.report import ExitRecord
from trl_trainer.checkpoints import checkpoint, fence
from trl_trainer.launch import records
from trl_trainer.launch.certificates import trusted
from trl_trainer.launch.host_memory import exhausted, oom_kills
from trl_trainer.launch.job import JOB_FILE, await_own, library_settings, read_job
from trl_trainer.launch.peers import OtherPods, wait_for_peers
from trl_trainer.launch.processes import (
    Stopped,
    adopt_orphans,
    children,
    cpus,
    ended,
    kill_descendants,
    kill_tree,
    launch,
    variable,
)

TERMINATION_LOG = "/dev/termination-log"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
POLL_SECONDS = 0.2
PEER_SECONDS = 20
"""How long the other ranks may take to end when one has failed. One that hangs in native code would never."""


class Stop:
    """The SIGTERM that this pod got: it is passed on to the launcher once, and kills everything when time is up."""

    def __init__(self, grace_seconds: int) -> None:
        self.grace_seconds = grace_seconds
        self.time: str | None = None
        self.launcher: int | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_term)
        signal.signal(signal.SIGALRM, self._on_deadline)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        if self.time is not None:
            # A second SIGTERM would interrupt torchrun while it waits for the ranks to save.
            return
        self.time = records.now()
        signal.alarm(max(1, self.grace_seconds - 5))
        if self.launcher is None:
            raise SystemExit
        with suppress(ProcessLookupError):  # it has ended, and its end is being looked into
            os.kill(self.launcher, signal.SIGTERM)

    def _on_deadline(self, number: int, frame: FrameType | None) -> None:
        for child in children(os.getpid()):
            kill_tree(child)


def main() -> int:
    """Run the job of `--job` to its end on this node and return the container's exit code."""
    os.environ[records.BEGAN] = str(time.time())
    parser = argparse.ArgumentParser(prog="python -m trl_trainer.supervisor", description=__doc__)
    parser.add_argument("--job", default=JOB_FILE, help="job file (default %(default)s)")
    job_file = parser.parse_args().job
    stop = Stop(grace_seconds=300)
    attempt = 0
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        job = await_own(read_job(job_file), job_file, os.environ)
        stop.grace_seconds, attempt = job.termination_grace_period_seconds, job.attempt
        wait_for_peers(os.environ)
        fence.claim(Path(job.paths.storage) / job.uid, job.attempt)
        record = supervise(job, job_file, stop)
    except SystemExit:
        record = ExitRecord(
            outcome="Preempted", reason="Preempted", attempt=attempt, time=records.now(), message="stopped before start"
        )
    except Exception as error:
        record = records.failure(
            error, time=records.now(), attempt=attempt, rank=int(os.environ.get("PET_NODE_RANK", "0"))
        )
    # A job that failed before it started its ranks: nothing may take the record any more.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    # Kubernetes mounts the file; a plain `docker run` has none, and its user may not make one.
    path = os.environ.get("TRL_TERMINATION_LOG", TERMINATION_LOG)
    if path != TERMINATION_LOG or os.path.exists(path):
        Path(path).write_text(records.to_message(record))
    code = records.exit_code(record)
    print(f"supervisor: {record.outcome} {record.reason or ''} {record.message} (exit {code})", flush=True)
    return code


def supervise(job: JobFile, path: str, stop: Stop) -> ExitRecord:
    """Run this node's ranks and return how they ended."""
    adopt_orphans()
    nproc, work = job.num_proc_per_node, Path(job.paths.storage) / job.uid
    world = nproc * int(os.environ.get("PET_NNODES", "1"))
    first = nproc * int(os.environ.get("PET_NODE_RANK", "0"))
    oom_before = oom_kills()
    with tempfile.TemporaryDirectory(prefix="trl-") as name:
        folder = Path(name)
        stop.launcher = launch(command(path, job, folder, world), environment(job, folder, nproc))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        others = OtherPods(work, job.attempt) if world > nproc else None
        stopped = Stopped(math.ceil(job.stall_timeout_seconds / POLL_SECONDS))
        if world == 1:
            while not ended(stop.launcher):
                end_stopped(stopped.find([stop.launcher]), folder, job)
                time.sleep(POLL_SECONDS)
        else:
            wait_for_ranks(stop.launcher, folder, job, stopped, others)
        for number in (*STOP_SIGNALS, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        kill_descendants()
        published = checkpoint.published_paths(work)
        record = records.conclude(
            records.read(folder),
            expected=range(first, first + nproc),
            attempt=job.attempt,
            terminated=stop.time,
            oom_killed=exhausted() if oom_kills() > oom_before else "",
            checkpoint=f"{job.uid}/{published[0][1].name}" if published else None,
        )
        if record.outcome == "Failed" and not record.log and record.rank is not None:
            record = record.model_copy(update={"log": last_words(folder, record.rank - first)})
        if others is not None and record.outcome == "Failed":
            others.tell(record.message, seconds=5)
        return record


def wait_for_ranks(launcher: int, folder: Path, job: JobFile, stopped: Stopped, others: OtherPods | None) -> None:
    """Return when the launcher, torchrun, has ended.

    When a rank here or in another pod has failed, the ones that are left get PEER_SECONDS. torchrun gives them the
    grace period, in which one that hangs in a collective or in native code holds its GPU. A rank that was told to stop
    has not failed: it saves in peace.
    """
    alive, before, started = 0, 0, False
    failed, until = "", math.inf
    while not ended(launcher):
        ranks = [pid for pid in children(launcher) if variable(pid, "RANK") is not None]
        end_stopped(stopped.find(ranks), folder, job)
        alive, before = len(ranks), alive
        started |= alive > 0
        if not failed:
            # Counted twice: torchrun starts one rank after the other, and a new one is not one before it execs.
            dead = job.num_proc_per_node - max(alive, before) if started else 0
            failed = failure(records.read(folder), dead) or (others.heard if others is not None else "")
            if failed:
                until = time.monotonic() + PEER_SECONDS
                if others is not None:
                    others.tell(failed)
        if time.monotonic() > until:
            end_ranks(launcher, folder, job.attempt, failed)
            until = math.inf
        time.sleep(POLL_SECONDS)


def failure(found: Mapping[int, ExitRecord], dead: int) -> str:
    """Return which rank has failed, or "": `found` are the records of this pod's ranks, `dead` of which have ended."""
    for rank, record in found.items():
        if record.outcome == "Failed":
            return f"rank {rank}: {record.message}"
    return "a rank ended without a word" if dead > len(found) else ""


def end_stopped(pids: Iterable[int], folder: Path, job: JobFile) -> None:
    """Kill ranks that have been stopped for stallTimeoutSeconds, with records that say so."""
    for pid in pids:
        rank = int(variable(pid, "RANK") or 0)
        seconds = job.stall_timeout_seconds
        message = f"rank {rank} was stopped (SIGSTOP, or a debugger) for {seconds} s (runPolicy.stallTimeoutSeconds)"
        print(f"supervisor: {message}: it is killed", flush=True)
        record = ExitRecord(
            outcome="Failed", reason="Stalled", attempt=job.attempt, rank=rank, time=records.now(), message=message
        )
        records.write(folder, rank, record)
        kill_tree(pid)


def end_ranks(launcher: int, folder: Path, attempt: int, failed: str) -> None:
    """Kill the ranks, which do not end by themselves, and torchrun; their records say that it was not their failure."""
    message = f"killed, since it did not end within {PEER_SECONDS} s of a failure: {failed}"
    print(f"supervisor: ranks are {message}", flush=True)
    for pid in children(launcher):
        rank = variable(pid, "RANK")
        if rank is not None:
            record = ExitRecord(
                outcome="Failed", reason="PeerLost", attempt=attempt, rank=int(rank), time=records.now(),
                message=message[:1024],
            )  # fmt: skip
            records.write(folder, int(rank), record)
    kill_tree(launcher)


def last_words(folder: Path, local_rank: int) -> str:
    """Return the end of what a rank that left no record wrote to stderr, as torchrun keeps it."""
    logs = sorted(folder.glob(f"logs/*/attempt_*/{local_rank}/stderr.log"))
    if not logs:
        return ""
    with logs[-1].open("rb") as file:
        # More than is kept, so that no secret is cut in two.
        file.seek(max(0, logs[-1].stat().st_size - 65536))
        return records.mask(file.read().decode(errors="replace"), os.environ)[-2048:]


def command(path: str, job: JobFile, folder: Path, world: int) -> list[str]:
    """Return the argv of the launcher: torchrun, or the rank itself where it is the only one."""
    rank = ["trl_trainer", "--job", path]
    if world == 1:
        return [sys.executable, "-m", *rank]
    timeout = max(5, job.termination_grace_period_seconds - 15)
    # PET_NNODES and the like come from the environment; PET_NPROC_PER_NODE may say "auto", the job file has the number.
    where = [] if "PET_NNODES" in os.environ else ["--standalone"]
    return [
        sys.executable, "-m", "torch.distributed.run", *where, "--nproc-per-node", str(job.num_proc_per_node),
        "--max-restarts", "0", "--shutdown-timeout", str(timeout), "--tee", "3", "--log-dir", str(folder / "logs"),
        "--module", *rank,
    ]  # fmt: skip


def environment(job: JobFile, folder: Path, nproc: int) -> dict[str, str]:
    """Return the environment of the ranks."""
    found = {
        **os.environ,
        **library_settings(job),
        **trusted(os.environ, folder),
        records.FOLDER: str(folder),
        "PYTHONUNBUFFERED": "1",
        "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[rank${rank}] ",
    }
    found.setdefault("OMP_NUM_THREADS", str(max(1, cpus() // nproc)))
    return found


if __name__ == "__main__":
    sys.exit(main())
