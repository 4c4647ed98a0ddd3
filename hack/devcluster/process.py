"""Background processes: started in a session of their own, known by pid and start time, stopped or killed."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from devcluster.errors import DevClusterError
from devcluster.waiting import wait_for

# Every process of a cluster and their children (containerd's shims) carry this variable with the cluster's run folder:
# the ones whose pid file was never written are found by it.
MARK = "TRL_CLUSTER_RUN"


@dataclass(frozen=True)
class Process:
    """One process, not just a pid: `start_time` (clock ticks since boot, /proc/PID/stat) tells a reused pid apart."""

    pid: int
    start_time: int

    @property
    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return (found := _stat(self.pid)) is not None and found == (self.start_time, True)

    def signal(self, number: int) -> None:
        """Sends the signal if the process still runs."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


# Before a command: it is killed when the thread that started it dies, and does not go on beside our successor.
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")


def run(*command: str | Path, given: str | None = None, env: Mapping[str, str] = {}) -> str:
    """What the command prints, with `given` as its input; raises DevClusterError with its errors when it fails.

    `env` is added to the environment.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, input=given, env={**os.environ, **env}, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise DevClusterError(f"{words[0]}: no such command on the PATH") from error
    if done.returncode:
        raise DevClusterError(f"{' '.join(words)} failed with exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def start(name: str, command: Sequence[str | Path], *, run: Path, log: Path, env: Mapping[str, str] = {}) -> Process:
    """Starts `command` in its own session with output appended to `log` and its identity in `run`/NAME.pid."""
    run.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **env, MARK: str(run)},
        )
    found = _stat(child.pid)
    assert found is not None, "a child stays in /proc until it is waited for"
    process = Process(child.pid, found[0])
    # Popen would warn about, and reap, a child that outlives us on purpose.
    child.returncode = 0
    _write(run / f"{name}.pid", process)
    return process


def running(name: str, run: Path) -> Process | None:
    """The process that `start(name, ..., run=run)` started, if it still runs."""
    try:
        process = Process(**json.loads((run / f"{name}.pid").read_text()))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None
    return process if process.alive else None


def stop(name: str, run: Path, grace: float = 10) -> None:
    """The named process has ended: SIGTERM, then SIGKILL after `grace` seconds; its pid file is gone."""
    if process := running(name, run):
        end([process], grace)
    (run / f"{name}.pid").unlink(missing_ok=True)


def end(processes: Sequence[Process], grace: float) -> None:
    """None of the processes runs any more: SIGTERM, then SIGKILL for those left after `grace` seconds (0: at once)."""
    if grace:
        for process in processes:
            process.signal(signal.SIGTERM)
        with suppress(DevClusterError):
            wait_for("processes end", lambda: not _alive(processes), grace)
    for process in processes:
        process.signal(signal.SIGKILL)
    wait_for(f"killed processes {[p.pid for p in processes]} end", lambda: not _alive(processes), 30)


def marked(run: Path) -> list[Process]:
    """Every running process of the cluster whose run folder is `run`, whether it has a pid file or not."""
    wanted = f"{MARK}={run}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0") and (process := by_pid(int(folder.name))):
                found.append(process)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def by_pid(pid: int) -> Process | None:
    """The process that has this pid now, if it runs."""
    found = _stat(pid)
    return Process(pid, found[0]) if found and found[1] else None


def command_of(pid: int) -> str:
    """The command line of a process for messages, shortened to 120 characters."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return "a process that has ended"
    return text if len(text) <= 120 else text[:117] + "..."


def _alive(processes: Sequence[Process]) -> list[Process]:
    return [process for process in processes if process.alive]


def _stat(pid: int) -> tuple[int, bool] | None:
    """Start time and whether it runs (a zombie does not), or None where there is no such process."""
    try:
        # The second field is the command in parentheses and may hold anything, also parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[19]), fields[0] not in "ZX"


def _write(path: Path, process: Process) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(process)))
    temporary.rename(path)
