"""The memory estimate against torch's own count, without a GPU; `make memory-table` has all cases."""

import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench"
CASES = """
import json
from multiprocessing import get_context
from memory_tracker import Case, track
from memory_estimate import estimate
cases = [
    Case("0.5B", "full", 1, False, stage="sft"),
    Case("0.5B", "full", 8, True, stage="dpo"),
    Case("8B", "full", 64, True, stage="sft"),
    Case("8B", "qlora", 8, True, stage="sft"),
    Case("8B", "lora", 8, True, stage="sft"),
]
def ratio(case):
    return estimate(case).total / track(case)["peak"]
# One after the other they would take twice as long.
with get_context("fork").Pool(2) as pool:
    print(json.dumps(pool.map(ratio, cases, chunksize=1)))
"""


def test_the_estimate_is_what_torch_counts() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CASES],
        env={**os.environ, "PYTHONPATH": str(BENCH)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ratios = [float(value) for value in done.stdout.strip().splitlines()[-1].strip("[]").split(",")]
    assert len(ratios) == 5
    assert all(0.9 <= ratio <= 1.15 for ratio in ratios), ratios
