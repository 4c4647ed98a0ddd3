"""Whole pods, forked from a warm process (warm.py) for the kill test.

A pod here is the trainer's own supervisor and its ranks, with everything that they do. Only the two `exec`s between
them are replaced by forks of this warm process, since importing torch takes longer than the runs that are killed; and
with them torchrun, whose part (start the ranks, pass SIGTERM on, end all when one fails) is played by `launcher`.
"""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def pod(command: dict[str, Any]) -> None:
    """Run the supervisor; the lock on `alive` is held until the last process of the pod is gone."""
    base = Path(command["base"])
    fcntl.flock(os.open(base / "alive", os.O_RDWR), fcntl.LOCK_EX)
    (base / "locked").touch()
    log = os.open(base / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["TRL_TERMINATION_LOG"] = str(base / "termination-log")
    from trl_trainer import supervisor

    def become(file: str, argv: list[str], variables: dict[str, str]) -> None:
        os.environ.clear()
        os.environ.update(variables)
        if command["world"] == 1:
            rank_main(command)
        launcher(command)

    os.execvpe = become  # type: ignore[assignment]
    sys.argv = ["trl_trainer.supervisor", "--job", command["job"]]
    code = supervisor.main()
    (base / "code").write_text(str(code))
    os._exit(code)


def launcher(command: dict[str, Any]) -> None:
    """Start the ranks, pass SIGTERM on, end the others when one fails, as torchrun does."""
    stopped: list[float] = []
    alive: set[int] = set()

    def stop(*_: object) -> None:
        stopped.append(time.monotonic())
        for pid in alive:
            os.kill(pid, signal.SIGTERM)

    # A rank is not in `alive` before its number is known here.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    signal.signal(signal.SIGTERM, stop)
    alive |= {fork_rank(command, rank) for rank in range(command["world"])}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    failed = False
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        alive -= {pid}
        failed |= pid != 0 and os.waitstatus_to_exitcode(status) != 0
        if failed and not stopped:
            stop()
        if stopped and time.monotonic() - stopped[0] > 30:
            for other in alive:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.005)
    os._exit(1 if failed else 0)


def fork_rank(command: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        world = str(command["world"])
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=world, LOCAL_WORLD_SIZE=world,
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(command["port"]),
        )  # fmt: skip
        rank_main(command)
    return pid


def rank_main(command: dict[str, Any]) -> None:
    """Be a rank. Rank 0 also writes down what it is doing, so that the report can say what was interrupted."""
    sys.argv = ["trl_trainer", "--job", command["job"]]
    if os.environ.get("RANK", "0") == "0":
        note_activity(Path(command["base"]) / "activity")
    from trl_trainer.__main__ import main as run

    try:
        run()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(99)


def note_activity(path: Path) -> None:
    from trl_trainer.reports.progress import Reporter

    publish = Reporter._publish

    def noted(self: Reporter) -> None:
        path.write_text(self.state.activity)
        publish(self)

    Reporter._publish = noted  # type: ignore[method-assign]
