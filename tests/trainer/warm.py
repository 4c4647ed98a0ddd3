"""A process that has imported torch and TRL and forks ranks on demand: a run takes seconds instead of half a minute.

The ranks run trl_trainer's own main, with the same variables, in one of three ways. A JSON command per line on stdin
names ranks, which a launcher starts that stands in for torchrun, or a whole pod (kill_warm.py); the answer is a line
with their pids. Or a rank is asked for on a socket by the process that was to become it (instead.py), under the real
supervisor and the real torchrun.
"""

import functools
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    import trl_trainer.rank  # noqa: F401  (the point of this process)

    listener = socket.socket(socket.AF_UNIX)
    # An abstract name: a path may not be longer than 107 bytes.
    listener.bind(f"\0{sys.argv[1]}")
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([sys.stdin, listener], [], [])
        if listener in ready:
            connection, _ = listener.accept()
            fork(instead_of, connection)
            connection.close()
            continue
        # The next command comes when this one is answered: no line stays behind in a buffer.
        line = sys.stdin.readline()
        if not line:
            # The teardown of all that was imported takes seconds.
            os._exit(0)
        print(answer(json.loads(line)), flush=True)


def fork(run: Callable[..., None], *arguments: object) -> int:
    """Return the pid of a new process that does `run(*arguments)` and ends; nobody has to wait for it."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            run(*arguments)
        finally:
            traceback.print_exc()
            os._exit(99)
    return pid


def answer(command: dict[str, object]) -> str:
    if "base" in command:
        from kill_warm import pod

        return str(fork(pod, command))
    reader, writer = os.pipe()
    fork(launch, command, writer)
    os.close(writer)
    with os.fdopen(reader) as pids:
        # One line: the ranks have the pipe open too, until they end.
        return pids.readline().strip()


def launch(command: dict[str, object], writer: int) -> None:
    world = int(str(command["world"]))
    pids = [fork_rank(command, rank) for rank in range(world)]
    os.write(writer, f"{json.dumps(pids)}\n".encode())
    os.close(writer)
    codes: dict[int, int] = {}
    # torchrun sends SIGTERM as soon as one has failed, and then it is chance which of the two another sees first.
    failed_at, due = 0.0, [(float(str(command["patience"])), signal.SIGTERM)]
    while len(codes) < world:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[pid] = os.waitstatus_to_exitcode(status)
        if not failed_at and any(code != 0 for code in codes.values()):
            failed_at = time.monotonic()
        if failed_at and due and time.monotonic() - failed_at >= due[0][0]:
            after, number = due.pop()
            for other in set(pids) - set(codes):
                os.kill(other, number)
            due = [(after + 30, signal.SIGKILL)] if number == signal.SIGTERM else []
        time.sleep(0.01)
    part = Path(str(command["result"])).with_suffix(".part")
    part.write_text(json.dumps([codes[pid] for pid in pids]))
    os.replace(part, str(command["result"]))
    os._exit(0)


def fork_rank(command: dict[str, object], rank: int) -> int:
    pid = os.fork()
    if pid == 0:
        become(command, rank)
    return pid


def become(command: dict[str, object], rank: int) -> NoReturn:
    """Be rank `rank` of the command from here to the end of this process."""
    world = int(str(command["world"]))
    if world > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(command["port"]),
        )  # fmt: skip
    os.environ["TRL_RECORDS"] = str(command["records"])
    os.environ.update(command["environment"])  # type: ignore[call-overload]
    log = os.open(f"{command['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    faults = [functools.partial(exec, line, {"rank": rank}) for line in command["prelude"]]  # type: ignore[attr-defined]
    run_rank(["--job", str(command["job"])], log, log, faults)


def instead_of(connection: socket.socket) -> NoReturn:
    """Be the rank that a process asks for: its arguments, its variables and where it writes; its signals come, too."""
    _, outputs, _, _ = socket.recv_fds(connection, 1, 2)
    asked = b""
    while not asked.endswith(b"\n"):
        asked += connection.recv(1 << 16)
    arguments, variables = json.loads(asked)
    pid = os.fork()
    if pid == 0:
        connection.close()
        os.environ.clear()
        os.environ.update(variables)
        run_rank(arguments, *outputs)
    end = os.pidfd_open(pid)
    while not select.select([end], [], [], 0)[0]:
        if connection in select.select([end, connection], [], [])[0]:
            # Who asks is gone, or passes signals on.
            for number in connection.recv(16) or [signal.SIGKILL]:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(end, number)
    connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
    os._exit(0)


def run_rank(arguments: list[str], out: int, err: int, faults: Sequence[Callable[[], None]] = ()) -> NoReturn:
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.argv = ["trl_trainer", *arguments]
    try:
        for inject in faults:
            inject()
        from trl_trainer.__main__ import main as rank_main

        rank_main()
    finally:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(99)


if __name__ == "__main__":
    main()
