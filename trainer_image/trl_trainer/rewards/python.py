"""A reward function of the user, called in a process of its own with a time limit per call."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from trl_trainer.errors import TrainerError
from trl_trainer.rewards.limits import time_limit
from trl_trainer.rewards.score import Batch, Score

CHILD = Path(__file__).with_name("child.py")

IMPORT_SECONDS = 300
"""Time limit of the module's import, which timeoutSeconds (of one call) says nothing about."""


class PythonScorer:
    """Calls `function` of the file at `path` as f(prompts=..., completions=..., **columns), `seconds` long at most.

    The process is no sandbox: it runs as the same user. It has none of our environment (so no tokens), limited memory,
    and dies with us. One that hangs or dies is replaced at the next call.
    """

    def __init__(self, path: str, function: str, seconds: int) -> None:
        self._command = [sys.executable, "-I", str(CHILD), path, function]
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._start()

    def __call__(self, batch: Batch) -> list[Score]:
        """Return one score per completion; None abstains, as in TRL. What goes wrong in the function
        is a TrainerError (RewardError)."""
        request = {"prompts": batch.prompts, "completions": batch.completions, "columns": batch.columns}
        self.wait_until_ready()
        scores: list[Score] = self._ask(json.dumps(request, default=str).encode() + b"\n", self._seconds)["rewards"]
        return scores

    def wait_until_ready(self) -> None:
        """Return when the module is imported; TrainerError (RewardError) when that fails."""
        if self._is_ready:
            return
        if self._process is None:
            self._start()
        try:
            self._ask(b"", IMPORT_SECONDS)
        except TrainerError:
            self.close()
            raise
        self._is_ready = True

    def close(self) -> None:
        """End the process and whatever it started."""
        if self._process is None:
            return
        os.killpg(self._process.pid, signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()
        self._process = None
        self._is_ready = False

    def _start(self) -> None:
        environment = {"PATH": os.defpath, "HOME": tempfile.gettempdir(), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=tempfile.gettempdir(),
            bufsize=0,
            start_new_session=True,
        )

    def _ask(self, request: bytes, seconds: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            with time_limit(seconds):
                view = memoryview(request)
                while view:
                    view = view[self._process.stdin.write(view) :]
                line = _read_line(self._process.stdout.fileno())
        except (TimeoutError, BrokenPipeError) as error:
            self.close()
            raise TrainerError("RewardError", str(error)) from error
        if not line:
            process = self._process
            self.close()
            raise TrainerError("RewardError", f"its process died with exit code {process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise TrainerError("RewardError", answer["error"], answer["log"])
        return answer


def _read_line(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
        if part.endswith(b"\n"):
            break
    return b"".join(parts)
