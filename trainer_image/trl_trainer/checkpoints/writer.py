"""Writes a checkpoint while training goes on.

accelerate saves shards with torch.distributed.checkpoint.save, which returns when they are on disk. Here it finds a
function in its place that returns when they are copied in memory, once, and a thread writes the copies. torch's own
async_save gives each call a thread, and model and optimizer are two calls: their messages would mix.
What transformers writes without shards (one process, the full form) is written when it returns; only what makes it a
checkpoint is left to the thread.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from trl_trainer.distributed.world import writers

SETTLE_SECONDS = 60.0
"""How long a run that has failed waits for the checkpoint that is being written."""


class Writer:
    """One rank's part in writing checkpoints, one at a time. All ranks use theirs alike."""

    def __init__(self) -> None:
        self._shards: list[Callable[[], Any]] = []
        self._stager: DefaultStager | None = None
        self._written: Future[None] = Future()
        self._written.set_result(None)

    @contextmanager
    def takes_shards(self) -> Iterator[None]:
        """While this is open, torch.distributed.checkpoint.save only copies; `start` writes what it has copied."""
        save = dcp.save

        def copy(state_dict: dict[str, Any], *, storage_writer: Any, planner: Any) -> None:
            staged = self._stage(state_dict)
            # Copying ahead from a GPU makes no sense here, and would open the first GPU in every rank's thread.
            storage_writer.per_thread_copy_ahead = 0
            where = {"storage_writer": storage_writer, "planner": planner, "process_group": writers()}
            self._shards.append(partial(save, staged, **where))

        dcp.save = copy
        try:
            yield
        finally:
            dcp.save = save

    def _stage(self, state_dict: dict[str, Any]) -> Any:
        """Return a copy in host memory."""
        if torch.cuda.is_available():
            # Page-locked, and the same memory at each checkpoint: to lock it takes longer than to copy. The stager
            # knows the storages that it has copied before, so it must be given the live ones (form.py).
            self._stager = self._stager or DefaultStager(StagingOptions(True, False, False, True))
            return self._stager.stage(state_dict)
        stager = DefaultStager(StagingOptions(False, False, False, False))
        staged = stager.stage(state_dict)
        # It keeps the copy otherwise, long after it is written.
        stager.close()
        return staged

    def start(self, publish: Callable[[], None]) -> None:
        """In a thread, write the shards that were copied, then call `publish`. The one before must be waited for."""
        assert self._written.done(), "one checkpoint at a time"
        shards, self._shards = self._shards, []
        future = self._written = Future()

        def work() -> None:
            try:
                while shards:
                    shards.pop(0)()
                publish()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)

        # No thread that keeps the process alive: after a failure it may wait for a peer that is gone.
        threading.Thread(target=work, name="checkpoint", daemon=True).start()

    def check(self) -> None:
        """Raise what went wrong with the checkpoint that was started, if that is known by now."""
        if self._written.done():
            self._written.result()

    def wait(self) -> None:
        """Return when the checkpoint that was started is published; what went wrong is raised."""
        self._written.result()

    def settle(self) -> None:
        """Give the checkpoint that was started a while to be published, since this run has failed."""
        wait([self._written], SETTLE_SECONDS)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise RuntimeError from the first rank's failure for torch's CheckpointException, which no `except Exception`
    sees and which hides its causes."""
    try:
        yield
    except dcp.CheckpointException as error:
        rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
        raise RuntimeError(f"checkpoint, rank {rank}: {type(cause).__name__}: {cause}") from cause
