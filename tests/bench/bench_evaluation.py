"""What evaluation costs a short job, and what preference accuracy in batches saves over one row at a time.

`PYTHONPATH=tests/bench python tests/bench/bench_evaluation.py` prints JSON and two lines: on the CPU, at shape `small`,
with the demo's numbers of steps (60 of 16 pairs) and of held-out pairs (64).
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", DISABLE_KUBEFLOW_INTEGRATION="TRUE", TOKENIZERS_PARALLELISM="false")

import torch
from shapes import SHAPES, make_job

from trl_contract.resolve import resolve
from trl_trainer.launch.job import read_job
from trl_trainer.launch.termination import Termination
from trl_trainer.results import evaluation

Batch = dict[str, torch.Tensor]


def row_by_row(model: Any, batch: Batch) -> torch.Tensor:
    """What was done before: logits of one row at a time, where a completion token is predicted."""
    sums = []
    for ids, mask, completion in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        keep = completion[1:].nonzero().squeeze(1)
        output = model(input_ids=ids[None], attention_mask=mask[None], use_cache=False, logits_to_keep=keep)
        logits = output.logits[0].float()
        sums.append(-torch.nn.functional.cross_entropy(logits, ids[1:][keep], reduction="sum"))
    return torch.stack(sums)


class Clock:
    """Adds up the seconds inside the functions it wraps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - start

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--pairs", type=int, default=15, help="interleaved pairs of both ways (default 15)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {**share(Path(folder, "share"), given.shape), "ratios": ratios(Path(folder), given.shape, given.pairs)}
    print(json.dumps(found))
    print(f"evaluation's share of the job: {found['evaluation'] / found['seconds']:.3f}")
    print(f"one row at a time / in batches: {statistics.median(found['ratios']):.2f}")


def share(folder: Path, shape: str) -> dict[str, float]:
    """Run a job of the demo's size; return its seconds, without imports, and those of its evaluations."""
    clock, plain = Clock(), evaluation.measure
    evaluation.measure = clock.wrap("evaluation", plain)
    start = time.perf_counter()
    run(folder, shape, steps=60)
    seconds = time.perf_counter() - start
    evaluation.measure = plain
    return {"seconds": seconds, **clock.seconds}


def ratios(folder: Path, shape: str, pairs: int) -> list[float]:
    """Return the times of one row at a time over those in batches, measured in turn on a job's held-out pairs."""
    found: list[float] = []
    from trl_trainer.stages import dpo

    measures: Any = dpo.STAGE.measures
    accuracy, head = evaluation.preference_accuracy, evaluation.completion_logps

    def seconds(way: Callable[[Any, Batch], torch.Tensor], trainer: Any) -> float:
        evaluation.completion_logps = way
        start = time.perf_counter()
        accuracy(trainer)
        return time.perf_counter() - start

    def compare(trainer: Any) -> float:
        while len(found) < pairs:
            found.append(seconds(row_by_row, trainer) / seconds(head, trainer))
        return accuracy(trainer)

    measures["preference_accuracy"] = compare
    run(folder / "ratios", shape, steps=1)
    return sorted(found)


def run(folder: Path, shape: str, steps: int) -> None:
    """Run a DPO job that holds out 64 pairs, in this process, to its end."""
    from trl_trainer import rank

    wanted = {"evaluation": {"maxExamples": 64}}
    path = make_job(folder, SHAPES[shape], world=1, gpus=False, steps=steps, rows=800, **wanted)
    file = json.loads(path.read_text())
    file["spec"]["dataset"]["evalSplit"] = 0.1
    file["spec"]["training"]["perDeviceBatchSize"] = 16
    file["spec"]["evaluation"]["perDeviceBatchSize"] = 8
    path.write_text(json.dumps(file))
    code = rank.main(resolve(read_job(str(path))), Termination())
    assert code == 0, f"the job ended with {code}"


if __name__ == "__main__":
    main()
