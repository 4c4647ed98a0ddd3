"""Controllers forked from a process that has imported everything: up in a tenth of the time, for hundreds of kills.

Run as a program it is that process: a line of its input starts a controller, or waits for the end of one.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1


class Forked:
    """As much of subprocess.Popen as the tests need, for a process that is the zygote's child."""

    def __init__(self, zygote: "Zygote", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote = zygote
        self._fd = os.pidfd_open(pid)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        return self._end(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._end(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._fd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _end(self, timeout: float | None) -> int | None:
        with self._lock:
            if self.returncode is None and select.select([self._fd], [], [], timeout)[0]:
                self.returncode = self._zygote.ask({"wait": self.pid})
                os.close(self._fd)
            return self.returncode


class Zygote:
    """A context manager; its children end with it, and it with the thread that entered it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> "Zygote":
        command = ["setpriv", "--pdeathsig=KILL", sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(self, environment: dict[str, str], log: Path) -> Forked:
        """Start a controller with this environment and no other."""
        return Forked(self, self.ask({"environment": environment, "log": str(log)}))

    def ask(self, what: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            print(json.dumps(what), file=self._process.stdin, flush=True)
            return int(self._process.stdout.readline())


def _fork(environment: dict[str, str], log: str) -> int:
    from trl_operator.__main__ import main

    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for number, file in ((0, nothing), (1, output), (2, output)):
            os.dup2(file, number)
        os.environ.clear()
        os.environ.update(environment)
        code = main()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _serve() -> None:
    import trl_operator.__main__  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        else:
            answer = _fork(**asked)
        print(answer, flush=True)


if __name__ == "__main__":
    _serve()
