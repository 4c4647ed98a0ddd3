"""How an attempt ended: one record per rank, and the one that the pod hands to the operator."""

import os
import re
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from errno import EDQUOT, ENOSPC, EROFS
from pathlib import Path

from trl_contract.report import EXIT_CODES, SECRET_VARIABLES, USER_ERROR_EXIT_CODE, ExitRecord, FailureReason, Progress
from trl_trainer.errors import Preempted, TrainerError, causes, is_network
from trl_trainer.launch import host_memory

BEGAN = "TRL_BEGAN"
"""Variable with the time at which the attempt began on this node, in seconds since 1970."""
FOLDER = "TRL_RECORDS"
"""Variable with the folder where ranks leave their records."""

MAX_BYTES = 4096
"""What Kubernetes keeps of a termination message."""

EFFECTS: tuple[FailureReason, ...] = ("PeerLost", "Preempted", "CommunicationTimeout")
"""What a rank sees when another has failed: its connection closes, torchrun sends SIGTERM, a collective times out."""

_PEER_LOST = re.compile(
    r"connection (closed|reset) by peer|broken pipe|socket.*(closed|reset)|ncclremoteerror|remote process exited"
    r"|failed to recv|connection refused|store.*(closed|broken)|rendezvous|gloo.*(enforce|eof)|unexpected eof",
    re.IGNORECASE,
)
_FULL = ("No space left", "PytorchStreamWriter failed", "unexpected pos")
"""How safetensors and torch's zip writer (caffe2/serialize/inline_container.cc) report a full disk: without errno."""
_SHARED_FULL = re.compile(r"/dev/shm/|</torch_|shared memory\(shm\)|shared memory segment|out of shared memory")
"""How torch, its loader of rows and NCCL report that /dev/shm is full."""
_GPU_FULL = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|Cuda failure.*out of memory"
)
"""How a GPU's memory ends outside of torch's allocator."""
_TIMEOUT = re.compile(r"timed out|timeout", re.IGNORECASE)
_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$")
_SECRET_TEXT = re.compile(r"hf_[A-Za-z0-9]{10,}|(?<=Bearer )[A-Za-z0-9._~+/=-]{8,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


def now() -> str:
    """Return the time in UTC, RFC 3339 with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def exit_code(record: ExitRecord) -> int:
    """Return the container's exit code: 0, or the class of the reason."""
    if record.outcome == "Succeeded":
        return 0
    assert record.reason is not None, "only success has no reason"
    return EXIT_CODES.get(record.reason, USER_ERROR_EXIT_CODE)


def classify(error: BaseException) -> tuple[FailureReason, str]:
    """Return the reason and the message for an exception that ended a rank.

    Library errors are told by class name and text, so that nothing here needs torch: torch.OutOfMemoryError,
    gloo's and NCCL's RuntimeErrors, OSErrors of a full or read-only disk.
    """
    if isinstance(error, Preempted):
        return "Preempted", str(error)
    for cause in causes(error):
        if isinstance(cause, TrainerError):
            return cause.reason, cause.message
        if full := _full_memory(cause):
            return full
        if isinstance(cause, OSError) and cause.errno in (ENOSPC, EDQUOT):
            return "StorageFull", f"no space left: {cause.filename or _first_line(cause)}"
        if isinstance(cause, OSError) and cause.errno == EROFS:
            return "StorageNotWritable", f"mounted read-only: {cause.filename or _first_line(cause)}"
        if isinstance(cause, PermissionError):
            return "AccessDenied", f"not allowed to write or read {cause.filename or ''}: {cause.strerror}"
    if is_network(error):
        return "NetworkUnavailable", f"the network does not answer: {type(error).__name__}: {_first_line(error)}"
    return _classify_text(error)


def _full_memory(error: BaseException) -> tuple[FailureReason, str] | None:
    """Return which memory had no room, how much it has, and the remedy; None if none was full."""
    said, line = str(error), _first_line(error)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in said:
        return "OutOfHostMemory", f"out of host memory: {line}; {host_memory.exhausted()}"
    full = isinstance(error, OSError | RuntimeError) and _SHARED_FULL.search(said)
    if full and ("No space left" in said or "out of shared memory" in said):
        return "OutOfHostMemory", f"out of shared memory: {line}; {host_memory.shared_exhausted()}"
    if type(error).__name__ == "OutOfMemoryError" or (isinstance(error, RuntimeError) and _GPU_FULL.search(said)):
        return "OutOfGPUMemory", f"out of GPU memory: {line}"
    return None


def _classify_text(error: BaseException) -> tuple[FailureReason, str]:
    said, text = str(error), f"{type(error).__name__}: {_first_line(error)}"
    if any(words in said for words in _FULL):
        return "StorageFull", text
    if "Read-only file system" in said:
        return "StorageNotWritable", text
    if "probability tensor contains" in said:
        return "NonFiniteLoss", (
            "the model's output is not finite: no completion can be sampled from it; look at the base model's weights"
            " if this is the first step, else lower training.learningRate"
        )
    if isinstance(error, RuntimeError):
        distributed = type(error).__name__.startswith("Dist") or "gloo" in said or "NCCL" in said
        if _PEER_LOST.search(said):
            return "PeerLost", text
        if distributed and _TIMEOUT.search(said):
            return "CommunicationTimeout", text
    return "Unknown", text


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:800]


def says_all(error: BaseException) -> bool:
    """Return whether the message is all there is to tell: the frames of a client that has asked a silent server again
    and again are those of its retries, by the hundred."""
    return isinstance(error, TrainerError) and error.reason == "NetworkUnavailable"


def failure(
    error: BaseException,
    *,
    time: str,
    attempt: int,
    rank: int,
    progress: Progress | None = None,
    activity: str = "",
) -> ExitRecord:
    """Return the record of a rank that `error` ended at `time`, with the tail of its traceback, how far it had come and
    what it was at."""
    reason, message = classify(error)
    if activity and reason in ("OutOfGPUMemory", "OutOfHostMemory"):
        message = f"while {activity}: {message}"
    log = "" if says_all(error) else "".join(traceback.format_exception(error))
    return ExitRecord(
        outcome="Preempted" if reason == "Preempted" else "Failed",
        attempt=attempt,
        reason=reason,
        message=mask(message, os.environ)[:1024],
        rank=rank,
        time=time,
        activity=activity,
        step=None if progress is None else progress.step,
        progress=progress if rank == 0 else None,
        log=mask(log, os.environ)[-2048:],
    )


def mask(text: str, environment: Mapping[str, str]) -> str:
    """Return `text` without the values of variables that came from Secrets or look so, hub tokens and bearer tokens.

    Others too may begin with the prefix of a Secret's variables, like HF_HUB_OFFLINE=1 and HF_HOME: short values, and
    paths that exist, are kept.
    """
    secret = environment.get(SECRET_VARIABLES, "").split()
    prefixes = tuple(name[:-1] for name in secret if name.endswith("*"))
    for name, value in environment.items():
        if (
            name in secret
            or (name.startswith(prefixes) and len(value) >= 6 and not (os.path.isabs(value) and os.path.exists(value)))
            or (_SECRET_NAME.search(name) and len(value) >= 6 and not os.path.isabs(value))
        ):
            text = text.replace(value, "***") if value else text
    return _SECRET_TEXT.sub("***", text)


def write(folder: Path, rank: int, record: ExitRecord) -> None:
    """Store the record of `rank`; the first one that a rank writes stays."""
    path = folder / f"rank-{rank}.json"
    part = folder / f"rank-{rank}.json.{os.getpid()}.part"
    part.write_text(record.model_dump_json(by_alias=True, exclude_none=True))
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    finally:
        part.unlink()


def read(folder: Path) -> dict[int, ExitRecord]:
    """Return the records of the ranks that wrote one."""
    return {
        int(path.stem.removeprefix("rank-")): ExitRecord.model_validate_json(path.read_text())
        for path in sorted(folder.glob("rank-*.json"))
    }


def conclude(
    found: Mapping[int, ExitRecord],
    *,
    expected: Sequence[int],
    attempt: int,
    terminated: str | None,
    oom_killed: str,
    checkpoint: str | None = None,
) -> ExitRecord:
    """Return how this pod's ranks ended, from the records that they left, with rank 0's progress if it ran here.

    `expected` are the pod's global ranks, `terminated` is the time of the SIGTERM that the pod got (or None),
    `oom_killed` for want of which memory the kernel killed a process of this container (or ""), `checkpoint` the newest
    published one.
    The first cause wins: what ranks see of another rank's death (EFFECTS) counts only where no cause is known, and a
    pod that was told to stop before anything failed was preempted.
    """
    records = sorted(found.values(), key=lambda record: record.time)
    silent = [rank for rank in expected if rank not in found]
    progress = next((record.progress for record in records if record.progress is not None), None)
    ended = _first_cause(records, silent, attempt, terminated, oom_killed)
    return ended.model_copy(update={"progress": progress, "checkpoint": checkpoint})


def _first_cause(
    records: Sequence[ExitRecord], silent: Sequence[int], attempt: int, terminated: str | None, oom_killed: str
) -> ExitRecord:
    if not silent and all(record.outcome == "Succeeded" for record in records):
        return min(records, key=lambda record: record.rank or 0)
    failed = [record for record in records if record.outcome != "Succeeded"]
    causes = [record for record in failed if record.reason not in EFFECTS]
    if terminated is not None and not any(record.time < terminated for record in causes):
        first = next((record for record in failed if record.outcome == "Preempted"), None)
        if first is not None:
            return first
        message = "stopped by SIGTERM" + (f"; then: {causes[0].message}" if causes else "")
        return ExitRecord(
            outcome="Preempted", reason="Preempted", attempt=attempt, time=terminated, message=message[:1024]
        )
    if causes:
        return causes[0]
    if silent:
        return _silent(silent[0], failed, attempt, oom_killed)
    return failed[0]


def _silent(rank: int, effects: Sequence[ExitRecord], attempt: int, oom_killed: str) -> ExitRecord:
    """A rank that wrote nothing died before its peers noticed: its time is that of the first effect."""
    if oom_killed:
        message = f"rank {rank} was killed by the kernel for want of host memory: {oom_killed}"
    else:
        message = f"rank {rank} ended without a word: killed by a signal, or crashed in native code"
    return ExitRecord(
        outcome="Failed",
        reason="OutOfHostMemory" if oom_killed else "Unknown",
        attempt=attempt,
        rank=rank,
        time=effects[0].time if effects else now(),
        message=message,
    )


def to_message(record: ExitRecord) -> str:
    """Return the record as JSON of at most MAX_BYTES, by cutting what the status can miss."""
    cuts: list[ExitRecord] = [record]
    if record.progress is not None:
        slim = record.progress.model_copy(update={"warnings": record.progress.warnings[:2]})
        cuts.append(record.model_copy(update={"progress": slim}))
        slim = slim.model_copy(update={"warnings": [], "metrics": slim.metrics[:12]})
        cuts.append(record.model_copy(update={"progress": slim}))
        slim = slim.model_copy(update={"metrics": slim.metrics[:4], "checkpoints": slim.checkpoints[-2:]})
        cuts.append(cuts[-1].model_copy(update={"progress": slim}))
    cuts.extend(cuts[-1].model_copy(update={"log": record.log[-size:] if size else ""}) for size in (1024, 512, 0))
    cuts.append(cuts[-1].model_copy(update={"progress": None, "message": record.message[:512]}))
    for cut in cuts:
        text = cut.model_dump_json(by_alias=True, exclude_none=True)
        if len(text.encode()) <= MAX_BYTES:
            return text
    raise AssertionError("a record without log and progress is below the limit")
