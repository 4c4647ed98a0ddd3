"""Rank 0 prepares the data as long as it takes, and the other ranks know at once how it ended."""

import json
from pathlib import Path

import pytest
from trainer_kit import Warm, job_file, preference_pairs, write_jsonl

# Every part of 8 rows takes a second on rank 0; the others may wait 4 s for a sign of life.
SLOW = """
import time
from trl_trainer.data import lines, preparation
from trl_trainer.launch import processes
lines.PART, preparation.INTERVAL_SECONDS, in_parallel = 8, 0.1, processes.in_parallel
def slow(*arguments):
    for number, answer in enumerate(in_parallel(*arguments)):
        time.sleep({seconds})
        {more}
        yield answer
processes.in_parallel = slow
"""
SPEC = {"training": {"maxSteps": 2}, "evaluation": {"enabled": False}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(48))
    return tmp_path


def test_ranks_wait_as_long_as_rows_are_prepared(warm: Warm, model_folder: Path, folder: Path) -> None:
    job = job_file(folder, model_folder, spec=SPEC, stallTimeoutSeconds=2)
    ended = warm.run(job, prelude=[SLOW.format(seconds=1, more="")])
    assert ended.codes == [0, 0], ended.logs
    (said,) = (folder / "storage/uid-1/data").glob("progress-*.jsonl")
    told = [json.loads(line) for line in said.read_text().splitlines()]
    assert [line["done"] for line in told if line.get("doing") == "tokenizing"] == [8, 16, 24, 32, 40, 48]


def test_ranks_do_not_wait_for_one_that_stands_still(warm: Warm, model_folder: Path, folder: Path) -> None:
    job = job_file(folder, model_folder, spec=SPEC, stallTimeoutSeconds=2)
    ended = warm.run(job, prelude=[SLOW.format(seconds=0, more="time.sleep(1000 * number)")], seconds=60)
    reasons = [record.reason for record in ended.records.values()]
    assert "CommunicationTimeout" in reasons, ended.logs


def test_every_rank_ends_at_once_when_rank_0_cannot_go_on(warm: Warm, model_folder: Path, folder: Path) -> None:
    # Rank 0 stays until rank 1 has said why it ends: torchrun's SIGTERM to it would be an end at once, too.
    waits = """
import os, time
from pathlib import Path
import trl_trainer.rank as r
train = r.train
def stays(*arguments):
    try:
        return train(*arguments)
    finally:
        end = time.monotonic() + 60
        while 1 not in r.records.read(Path(os.environ[r.records.FOLDER])) and time.monotonic() < end:
            time.sleep(0.02)
if rank == 0:
    r.train = stays
"""
    full = SLOW.format(seconds=0, more="raise OSError(28, 'No space left', 'train.arrow')")
    ended = warm.run(job_file(folder, model_folder, spec=SPEC), prelude=[full, waits])
    assert ended.records[0].reason == "StorageFull"
    assert ended.records[1].reason == "PeerLost"
    assert ended.records[1].message == "rank 0 failed: [Errno 28] No space left: 'train.arrow'"
