"""The copy from which a checkpoint is written: there while it is written, and not longer."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict

from trl_trainer.checkpoints.writer import Writer

SIZE = 64 << 20


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.usefixtures("no_collector")
def test_memory_does_not_grow_from_one_checkpoint_to_the_next(tmp_path: Path) -> None:
    writer, weights = Writer(), torch.ones(SIZE // 4)
    after = []
    for step in range(4):
        with writer.takes_shards():
            dcp.save(
                {"weights": weights, "step": step},
                storage_writer=dcp.FileSystemWriter(tmp_path / str(step)),
                planner=DefaultSavePlanner(),
            )
        assert not (tmp_path / str(step)).exists()
        writer.start(lambda: None)
        writer.wait()
        assert (tmp_path / str(step) / ".metadata").exists()
        after.append(memory())
    assert after[-1] - after[0] < SIZE


def test_what_goes_wrong_in_the_thread_is_raised_by_whoever_looks() -> None:
    def fail() -> None:
        raise OSError("the disk is gone")

    writer = Writer()
    writer.check()
    writer.start(fail)
    writer.settle()
    for look in (writer.check, writer.wait):
        with pytest.raises(OSError, match="the disk is gone"):
            look()


def test_a_stager_that_is_kept_copies_the_live_state_into_the_same_memory_again() -> None:
    """What the writer does from GPUs, without page-locking: no other way to see it on a machine that has none."""
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    stager = DefaultStager(StagingOptions(False, False, False, False))
    copies = []
    for _ in range(2):
        model(torch.ones(8)).sum().backward()
        optimizer.step()
        model_state, optimizer_state = get_state_dict(model, optimizer)
        staged = stager.stage({"model": model_state, "optimizer": optimizer_state})
        copies.append([staged["model"]["weight"], staged["optimizer"]["state"]["weight"]["exp_avg"]])
    for first, second, live in zip(*copies, [model.weight, optimizer.state[model.weight]["exp_avg"]], strict=True):
        assert first.data_ptr() == second.data_ptr() != live.data_ptr()
        assert torch.equal(second, live)
