"""Runs a reward function of the user, in a process of its own: `python -I child.py FILE FUNCTION`.

Standard library only, and nothing of ours, so that the user's code sees a plain interpreter. Requests and answers are
lines of JSON; what the user's code prints goes to standard error.
"""

import asyncio
import ctypes
import importlib.machinery
import inspect
import json
import os
import resource
import signal
import sys
import traceback
import types
from collections.abc import Awaitable, Callable
from typing import Any, BinaryIO

LIMITS = {
    resource.RLIMIT_AS: 8 * 2**30,
    resource.RLIMIT_FSIZE: 2**30,
    resource.RLIMIT_NOFILE: 256,
    resource.RLIMIT_CORE: 0,
}
PR_SET_PDEATHSIG = 1


def main() -> None:
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    confine()
    try:
        function = load(*sys.argv[1:])
    except BaseException as error:
        answer(answers, failure(error))
        return
    answer(answers, {"ready": True})
    for line in requests:
        answer(answers, call(function, **json.loads(line)))


def confine() -> None:
    """Limit memory, files and core dumps; die with the trainer, and before it when memory runs out."""
    for limit, value in LIMITS.items():
        resource.setrlimit(limit, (value, value))
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def load(path: str, name: str) -> Callable[..., Any]:
    """Return the function; whatever the module raises is raised."""
    loader = importlib.machinery.SourceFileLoader("reward", path)
    module = types.ModuleType("reward")
    sys.modules["reward"] = module
    loader.exec_module(module)
    function: Callable[..., Any] = getattr(module, name)
    return function


def call(
    function: Callable[..., Any], prompts: list[Any], completions: list[Any], columns: dict[str, list[Any]]
) -> dict[str, Any]:
    """Return {"rewards": one number, or None, per completion} or what `failure` returns."""
    try:
        result = function(prompts=prompts, completions=completions, **columns)
        if inspect.isawaitable(result):
            result = asyncio.run(wait(result))
        return {"rewards": [number(value) for value in result]}
    except BaseException as error:
        return failure(error)


def number(value: Any) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"it returned {value!r:.200}, which is no number") from None


async def wait(result: Awaitable[Any]) -> Any:
    return await result


def failure(error: BaseException) -> dict[str, Any]:
    """Return {"error": what was raised, in one line, "log": the end of the user's part of the traceback}."""
    said = traceback.format_exception_only(error)[-1].strip().splitlines() or [type(error).__name__]
    theirs = error.__traceback__
    while theirs is not None and theirs.tb_frame.f_code.co_filename != sys.argv[1]:
        theirs = theirs.tb_next
    log = "".join(traceback.format_exception(type(error), error, theirs)).strip()
    return {"error": said[0][:500], "log": log[-1500:]}


def answer(answers: BinaryIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
