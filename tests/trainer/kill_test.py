"""Kills at random instants. As a pytest: a few, in a minute. `make kill-test`: hundreds, and a report."""

import argparse
import os
import platform
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import make_model
from kill_kit import CASES, FAULTS, TOLERANCE, Result, Whole, chain, whole
from trainer_kit import Warm, warm_process

SHORT_SEED = 11
ACTIVITIES = ("starting", "loading", "tokenizing", "evaluating", "training", "saving", "exporting")


def test_a_job_that_is_killed_at_random_instants_ends_as_if_nothing_had_happened(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    result = Result()
    chains(warm, tmp_path, model_folder, ["dpo-full-2", "sft-lora-1"], random.Random(SHORT_SEED), result, kills=4)
    assert result.ends == result.chains


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    rng, result, began, failure = random.Random(given.seed), Result(), time.monotonic(), ""
    with tempfile.TemporaryDirectory(prefix="kill-") as folder:
        try:
            with warm_process(Path(folder, "pods")) as warm:
                model = make_model(Path(folder, "model"))
                chains(warm, Path(folder), model, given.cases, rng, result, given.kills)
        except AssertionError:
            failure = traceback.format_exc()
    minutes = (time.monotonic() - began) / 60
    text = report(result, given.seed, minutes, failure)
    print(text.splitlines()[2] + (f"\n{failure}" if failure else ""))
    if given.report is not None:
        given.report.write_text(text)
    return 1 if failure else 0


def chains(
    warm: Warm, folder: Path, model: Path, cases: Sequence[str], rng: random.Random, result: Result, kills: int
) -> None:
    """Run chains of the cases in turn, each at least once, until enough kills have landed: a job may also end first."""
    expected: dict[str, Whole] = {}
    while len(result.kills) < kills or result.chains < len(cases):
        assert result.chains < 10 * kills, f"only {len(result.kills)} kills have landed in {result.chains} jobs"
        name = cases[result.chains % len(cases)]
        case = CASES[name]
        if name not in expected:
            expected[name] = whole(warm, folder / f"{name}-whole", model, case)
        place = folder / f"{name}-{result.chains}"
        chain(warm, place, model, case, expected[name], rng, result, kills=rng.randint(1, 8))
        print(f"{len(result.kills)} kills, {result.ends} jobs came to their end; last {name}", flush=True)


def report(result: Result, seed: int, minutes: float, failure: str) -> str:
    """Return the report as Markdown; its third line is the summary."""
    kills = result.kills
    by_fault = Counter((kill.fault, kill.activity) for kill in kills)
    lines = [
        "# Kill test",
        "",
        f"{'FAILED: ' if failure else ''}{len(kills)} kills in {minutes:.0f} minutes, {result.chains} jobs,"
        f" {result.ends} came to their end and equalled the undisturbed run within {TOLERANCE}"
        f" (final weights, and every logged value at loggingSteps 1); {result.torn} checkpoints were left torn,"
        " none was loaded; no published step was lost.",
        "",
        f"`make kill-test` on {datetime.now().date()}, seed {seed}, {os.cpu_count()} cores, Python"
        f" {platform.python_version()}. Pods are the real supervisor and ranks, forked from a process that has imported"
        " torch and TRL; only torchrun is played by a stand-in (tests/trainer/kill_warm.py).",
        "",
        "After every kill, when the last process of the pod is gone:",
        "",
        "- the next attempt's first step is the one after the newest checkpoint whose files have the sizes and SHA-256"
        " of its manifest (checked without the trainer's code), so a torn one is never loaded;",
        "- that checkpoint's step never goes back, and all steps up to it stay in metrics.jsonl, once each;",
        "- the termination message, where the supervisor lived to write it, has the reason of the fault and agrees with"
        " the exit code: Preempted after SIGTERM, never CheckpointCorrupt;",
        "- `final/` is whole whenever it is there; no pod hangs.",
        "",
        "| fault | " + " | ".join(ACTIVITIES) + " | all |",
        "|---|" + "---|" * (len(ACTIVITIES) + 1),
    ]
    for fault, words in FAULTS.items():
        counts = [by_fault[fault, activity] for activity in ACTIVITIES]
        lines.append(f"| {words} | " + " | ".join(str(count) for count in (*counts, sum(counts))) + " |")
    lines += ["", "| job (kind, what is trained, processes) | kills |", "|---|---|"]
    lines += [f"| {name} | {sum(kill.case == name for kill in kills)} |" for name in CASES]
    if failure:
        lines += ["", "```", failure, "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
