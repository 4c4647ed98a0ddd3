"""Processes below this one: started, told to end with it, reaped and killed; and what the container may use."""

import ctypes
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def launch(argv: list[str], variables: dict[str, str]) -> int:
    """Start the launcher in a session of its own and return its pid, with SIGTERM and SIGINT blocked here until the
    caller has noted it; the launcher is told to stop should we die."""
    signals = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        end_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        os.execvpe(argv[0], argv, variables)
    return pid


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when the thread that forked it is gone."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def ended(pid: int) -> bool:
    """Reap the children that have ended, and return whether `pid` is one of them."""
    found = False
    while True:
        try:
            child, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if child == 0:
            return found
        found |= child == pid


def variable(pid: int, name: str) -> str | None:
    """Return the variable of the process as it was when it started; None if there is none, or it may not be read."""
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    prefix = f"{name}=".encode()
    return next((line.removeprefix(prefix).decode() for line in lines if line.startswith(prefix)), None)


def is_stopped(pid: int) -> bool:
    """Return whether the process is stopped, by SIGSTOP or by a debugger; False if it is gone."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state in ("T", "t")


class Stopped:
    """Finds processes that stay stopped: no watchdog of their own can, for it is stopped with them.

    Looks are counted and not time, for whoever looks may have been stopped too, with the whole container.
    """

    def __init__(self, looks: int) -> None:
        self._limit = looks
        self._looks: dict[int, int] = {}

    def find(self, pids: Iterable[int]) -> list[int]:
        """Return those of the processes that were stopped at so many looks in a row, this one included."""
        self._looks = {pid: self._looks.get(pid, 0) + 1 for pid in pids if is_stopped(pid)}
        return [pid for pid, looks in self._looks.items() if looks >= self._limit]


def kill_descendants() -> None:
    """Kill and reap every process that is left below this one; orphans have become our children."""
    while below := children(os.getpid()):
        for child in below:
            kill_tree(child)
        for child in below:
            os.waitpid(child, 0)


def kill_tree(pid: int) -> None:
    below = children(pid)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    for child in below:
        kill_tree(child)


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found.extend(int(child) for child in task.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def cpus(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the CPUs that this container may use: its quota rounded up, or the affinity if that is less."""
    allowed = len(os.sched_getaffinity(0))
    path = root / "cpu.max"
    if path.exists():
        quota, period = path.read_text().split()
        if quota != "max":
            return max(1, min(allowed, -(-int(quota) // int(period))))
    return allowed


def in_parallel(function: Callable[[T], bytes], tasks: Sequence[T], number: int) -> Iterator[bytes]:
    """Yield function(task) of each task, in their order, from `number` forked processes.

    A process works one task ahead of what is taken from it, so memory does not grow with the tasks. What `function`
    raises is raised here; ChildProcessError when a process dies. They end with the iteration, however that ends.
    """
    context = multiprocessing.get_context("fork")
    number = min(number, len(tasks))
    workers, answers = [], []
    try:
        for share in range(number):
            ours, theirs = context.Pipe(duplex=False)
            worker = context.Process(target=_work, args=(function, tasks[share::number], theirs))
            worker.start()
            theirs.close()
            workers.append(worker)
            answers.append(ours)
        for index in range(len(tasks)):
            try:
                answer = answers[index % number].recv()
            except EOFError:
                worker = workers[index % number]
                worker.join()
                raise ChildProcessError(f"a process that prepares data ended with {worker.exitcode}") from None
            if isinstance(answer, BaseException):
                raise answer
            yield answer
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _work(function: Callable[[T], bytes], tasks: Sequence[T], answers: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    for task in tasks:
        try:
            answers.send(function(task))
        except Exception as error:
            traceback.print_exc()
            answers.send(error)
            return
