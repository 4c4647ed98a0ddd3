"""A process that has imported torch and TRL and forks ranks on demand: a run takes seconds instead of half a minute.

It stands in for torchrun only: the ranks run trl_trainer's own main, with the same variables. It reads one JSON
command per line, forks a launcher that forks the ranks, and answers with their pids; the launcher ends the others
when one fails, as torchrun does, and writes the exit codes.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn


def main() -> None:
    import trl_trainer.rank  # noqa: F401  (the point of this process)

    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(reader)
            launch(command, writer)
        os.close(writer)
        with os.fdopen(reader) as pids:
            print(pids.read(), flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def launch(command: dict[str, object], writer: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    world = int(str(command["world"]))
    pids = [fork_rank(command, rank) for rank in range(world)]
    os.write(writer, json.dumps(pids).encode())
    os.close(writer)
    codes: dict[int, int] = {}
    stopped_at = None
    while len(codes) < world:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[pid] = os.waitstatus_to_exitcode(status)
        failed = any(code != 0 for code in codes.values())
        if failed and stopped_at is None:
            stopped_at = time.monotonic()
            signal_all(pids, codes, signal.SIGTERM)
        if stopped_at is not None and time.monotonic() - stopped_at > 30:
            signal_all(pids, codes, signal.SIGKILL)
        time.sleep(0.01)
    part = Path(str(command["result"])).with_suffix(".part")
    part.write_text(json.dumps([codes[pid] for pid in pids]))
    os.replace(part, str(command["result"]))
    os._exit(0)


def signal_all(pids: list[int], codes: dict[int, int], number: int) -> None:
    for pid in pids:
        if pid not in codes:
            os.kill(pid, number)


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
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["trl_trainer", "--job", str(command["job"])]
    try:
        for line in command["prelude"]:  # type: ignore[attr-defined]
            # A fault to inject, in the rank's own process.
            exec(line, {"rank": rank})
        from trl_trainer.__main__ import main as rank_main

        rank_main()
    finally:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(99)


if __name__ == "__main__":
    main()
