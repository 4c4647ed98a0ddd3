"""Rank 0 prepares the data as long as it takes, and the other ranks know at once how it ended."""

import json
from pathlib import Path

import pytest
from trainer_kit import Warm, job_file, preference_pairs, write_jsonl

SMALL_PARTS = """
import time
from trl_trainer.data import lines, preparation
from trl_trainer.launch import processes
lines.PART, preparation.INTERVAL_SECONDS, in_parallel = 8, 0, processes.in_parallel
def parts(function, tasks, count):
    for number, answer in enumerate(in_parallel(function, tasks, count)):
        if isinstance(tasks[0], tuple):  # a part, and no rows that the preflight looks at
            {then}
        yield answer
processes.in_parallel = parts
"""
"""A prelude: every 8 rows something happens on rank 0, which tells of them before."""
CLOCK = """
import types
from trl_trainer.data import preparation
clock, last_line, seen = types.SimpleNamespace(now=0, sleep=preparation.time.sleep), preparation._last_line, [b""]
clock.monotonic = lambda: clock.now
def line(path):
    found = last_line(path)
    clock.now += 1500 * ({passes})
    seen.append(found)
    return found
if rank == 1:
    preparation._last_line, preparation.time = line, clock
"""
"""A prelude: rank 1, which gives up after twice 1000 s, has a clock that jumps by 1500 s when it `passes`."""
SPEC = {"training": {"maxSteps": 2}, "evaluation": {"enabled": False}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(48))
    return tmp_path


def test_ranks_wait_as_long_as_rows_are_prepared(warm: Warm, model_folder: Path, folder: Path) -> None:
    job = job_file(folder, model_folder, spec=SPEC, stallTimeoutSeconds=1000)
    # Rank 1 must see more than one line, however slow it is.
    slow = SMALL_PARTS.format(then="time.sleep(0.3)")
    ended = warm.run(job, prelude=[slow, CLOCK.format(passes="found != seen[-1]")])
    assert ended.codes == [0, 0], ended.logs
    (said,) = (folder / "storage/uid-1/data").glob("progress-*.jsonl")
    told = [json.loads(line) for line in said.read_text().splitlines()]
    assert [line["done"] for line in told if line.get("doing") == "tokenizing"] == [8, 16, 24, 32, 40, 48]


def test_ranks_do_not_wait_for_one_that_stands_still(warm: Warm, model_folder: Path, folder: Path) -> None:
    job = job_file(folder, model_folder, spec=SPEC, stallTimeoutSeconds=1000)
    still = SMALL_PARTS.format(then="time.sleep(1000 * number)")
    ended = warm.run(job, prelude=[still, CLOCK.format(passes="b'tokenizing' in found")], patience=0)
    assert ended.records[1].reason == "CommunicationTimeout", ended.logs
    assert "rank 0 has prepared no row of the data for 2000 s" in ended.records[1].message


def test_every_rank_ends_at_once_when_rank_0_cannot_go_on(warm: Warm, model_folder: Path, folder: Path) -> None:
    full = SMALL_PARTS.format(then="raise OSError(28, 'No space left', 'train.arrow')")
    ended = warm.run(job_file(folder, model_folder, spec=SPEC), prelude=[full])
    assert ended.records[0].reason == "StorageFull"
    assert ended.records[1].reason == "PeerLost"
    assert ended.records[1].message == "rank 0 failed: [Errno 28] No space left: 'train.arrow'"
