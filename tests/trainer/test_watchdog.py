"""What counts as a sign of life in which phase, and how a rank without one ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trl_contract.report import ExitRecord
from trl_trainer.launch import records
from trl_trainer.launch.watchdog import Signs, moved_bytes, works

IDLE = Signs(cpu=1.0, moved=1000, saved=None)
BUSY = Signs(cpu=2.0, moved=1000, saved=None)
WRITES = Signs(cpu=1.0, moved=1000 + (1 << 20), saved=None)
SAVES = Signs(cpu=1.0, moved=1000, saved=5)
SAVED = Signs(cpu=1.0, moved=1000, saved=9)


@pytest.mark.parametrize(
    ("before", "after", "alone", "together"),
    [
        (IDLE, IDLE, False, False),
        # Idle threads, the most that was seen, and a log line now and then.
        (IDLE, Signs(cpu=1.013, moved=1200, saved=None), False, False),
        # A collective that waits may burn a core.
        (IDLE, BUSY, True, False),
        (IDLE, WRITES, True, False),
        (SAVES, SAVED, True, True),
        # The storage did not say.
        (IDLE, SAVED, False, False),
        (Signs(cpu=1.0, moved=None, saved=None), Signs(cpu=1.0, moved=None, saved=None), False, False),
        (Signs(cpu=1.0, moved=None, saved=None), Signs(cpu=2.0, moved=None, saved=None), True, False),
    ],
)
def test_what_a_process_computes_and_writes_counts_where_no_collective_can_burn_time(
    before: Signs, after: Signs, alone: bool, together: bool
) -> None:
    assert works(before, after, 1.0, together=False) is alone
    assert works(before, after, 1.0, together=True) is together


def test_what_storage_delivers_to_a_mapped_file_counts_and_what_the_page_cache_does_not() -> None:
    io = "rchar: 7\nwchar: 100\nsyscr: 1\nsyscw: 2\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 0\n"
    assert moved_bytes(io) == 100 + 4096


def watched(folder: Path, code: str) -> tuple[int, float, str, dict[int, ExitRecord]]:
    """Run `code` under a watchdog of one second; return the exit code, the seconds, stderr and the records."""
    start = f"""
import ctypes, os, time
from trl_trainer.launch import watchdog
watchdog.OTHERS_SECONDS = 0.1
watchdog.Watchdog(1, lambda: None, attempt=0, rank=3, world=8).start()
def for_seconds(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
{code}
os._exit(0)
"""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", start], env={**os.environ, records.FOLDER: str(folder)}, stderr=subprocess.PIPE,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, time.monotonic() - began, done.stderr, records.read(folder)


def test_a_download_that_hangs_ends_with_its_activity_named(tmp_path: Path) -> None:
    code, _, log, found = watched(tmp_path, "watchdog.enter('loading the data')\ntime.sleep(100)")
    assert code == 137
    assert found[3].reason == "Stalled"
    assert found[3].message.startswith("rank 3: nothing for 1 s while loading the data (runPolicy.stallTimeoutSeconds)")
    assert "stacks of all threads" in log
    assert "most recent call first" in log


def test_a_call_that_computes_or_writes_or_waits_for_another_rank_goes_on(tmp_path: Path) -> None:
    code, seconds, log, _ = watched(
        tmp_path,
        f"""
for _ in for_seconds(1.6):
    pass
for _ in for_seconds(1.6):
    os.write(os.open({str(tmp_path / "download")!r}, os.O_WRONLY | os.O_CREAT), bytes(1 << 20))
    time.sleep(0.2)
with watchdog.led("preparing the data", leads=False):
    time.sleep(1.6)
watchdog.enter("training", together=True)
for _ in for_seconds(1.6):
    watchdog.beat()
    time.sleep(0.1)
""",
    )
    assert code == 0, log
    assert seconds > 6


def test_in_training_a_core_that_burns_is_no_sign_of_life(tmp_path: Path) -> None:
    code, _, _, found = watched(
        tmp_path, "watchdog.enter('training', together=True)\nwatchdog.beat(7)\nfor _ in for_seconds(100): pass"
    )
    assert code == 137
    assert found[3].reason == "CommunicationTimeout"
    assert "while training, after step 7" in found[3].message


def test_native_code_that_keeps_the_interpreters_lock_ends_too(tmp_path: Path) -> None:
    code, _, log, found = watched(tmp_path, "ctypes.PyDLL(None).sleep(100)")
    assert (code, found) == (1, {})
    assert "Timeout (0:00:01)!" in log
