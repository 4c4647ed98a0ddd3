"""The processes of this attempt: who this one is, and the few things that they do together."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from trl_contract.jobfile import JobFile
from trl_trainer.errors import TrainerError, UserError

T = TypeVar("T")

_gloo: Any = None
"""A group for what is below: its messages never queue behind those of training."""
_writers: Any = None
"""A group for the threads that write checkpoints (writer.py) while the others are in use."""
_timeout = timedelta(minutes=30)
"""Of the process group. A monitored barrier asks for it anew: torch gives it the default, not the group's."""


@dataclass(frozen=True)
class Run:
    """One rank of one attempt."""

    job: JobFile
    """With resolved defaults."""
    work: Path
    """The job's folder on the storage volume."""
    rank: int
    world: int
    device: str
    """cuda or cpu."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start(job: JobFile) -> Run:
    """Join the process group (if there is more than one process) and return this rank's place in it.

    The group is ours and not accelerate's: gloo for flags and checkpoints beside NCCL, and a timeout that also holds
    on CPU.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    wanted = job.world_size
    if world != wanted:
        raise UserError(
            "InvalidSpec", f"WORLD_SIZE is {world}, but numNodes x numProcPerNode is {wanted}: start {wanted}"
        )
    cuda = torch.cuda.is_available()
    if job.has_gpus and not cuda:
        raise TrainerError(
            "Unknown", "the job asks for GPUs, but PyTorch sees none: check the node's driver and the image"
        )
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if world > 1:
        global _gloo, _writers, _timeout
        _timeout = timeout(job)
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "cpu:gloo", timeout=_timeout)
        _gloo = dist.new_group(backend="gloo", timeout=_timeout)
        _writers = dist.new_group(backend="gloo", timeout=_timeout)
    return Run(job, Path(job.paths.storage) / job.uid, rank, world, "cuda" if cuda else "cpu")


def timeout(job: JobFile) -> timedelta:
    """Return how long a process group waits: twice stallTimeoutSeconds, so that the watchdog speaks first."""
    return timedelta(seconds=2 * job.stall_timeout_seconds)


def flags() -> Any:
    """Return the process group of what is below: gloo, between the memories of the hosts; None with one process."""
    return _gloo


def writers() -> Any:
    """Return the process group of the threads that write checkpoints; None with one process."""
    return _writers


def barrier(run: Run, group: Any = None) -> None:
    """Return when every rank has called this. `group`: as in `broadcast`."""
    if run.world > 1:
        dist.monitored_barrier(group=group or _gloo, timeout=_timeout)


def gather(run: Run, value: T, group: Any = None) -> list[T]:
    """Return the values of all ranks, in order of rank, on every rank. `group`: as in `broadcast`."""
    if run.world == 1:
        return [value]
    found: list[Any] = [None] * run.world
    dist.all_gather_object(found, value, group=group or _gloo)
    return found


def broadcast(run: Run, make: Callable[[], T], group: Any = None) -> T:
    """Return what `make` returns on rank 0, on every rank; where it raises, all ranks do.

    `group` is the process group that the messages take; another thread than the main one needs its own.
    """
    if run.world == 1:
        return make()
    error: Exception | None = None
    box: list[Any] = [None, None]
    if run.is_main:
        try:
            box[0] = make()
        except Exception as caught:
            error, box[1] = caught, str(caught)
    dist.broadcast_object_list(box, src=0, group=group or _gloo)
    if error is not None:
        raise error
    if box[1] is not None:
        raise TrainerError("PeerLost", f"rank 0 failed: {box[1]}")
    found: T = box[0]
    return found


class Pending:
    """An all-reduce under way."""

    def __init__(self, values: torch.Tensor, work: Any) -> None:
        self._values = values
        self._work = work

    def wait(self) -> list[int]:
        """Return the greatest value of all ranks for each."""
        if self._work is not None:
            self._work.wait()
        return [int(value) for value in self._values]


def start_max(run: Run, values: list[int]) -> Pending:
    """Start to reduce `values` to their maximum over all ranks; every rank must call this equally often."""
    tensor = torch.tensor(values, dtype=torch.int32)
    if run.world == 1:
        return Pending(tensor, None)
    return Pending(tensor, dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=_gloo, async_op=True))


def leave() -> None:
    """Leave the process group, if there is one, after the last message."""
    if dist.is_initialized():
        dist.destroy_process_group()
