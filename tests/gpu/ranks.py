"""Runs jobs of one process, one after another, each in a process of its own."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shapes import SHAPES, Shape, make_model, make_rows
from trainer_kit import Ended, job_file

from trl_trainer.launch import records

HERE = Path(__file__).parent
STEPS = 12


class NotRun(Exception):
    """A part cannot be asked here; the message says what is missing."""


class Starter(Protocol):
    """Runs the rank of a one-process job to its end."""

    def run(self, job: Path, world: int, seconds: float, *, prelude: Sequence[str]) -> Ended: ...


class Processes:
    """Runs ranks in fresh processes, the next of which imports while one runs."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._next = self._spare()

    def _spare(self) -> subprocess.Popen[str]:
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(self._folder / "datasets")}
        command = [sys.executable, str(HERE / "waiting_rank.py")]
        return subprocess.Popen(command, stdin=subprocess.PIPE, env=variables, text=True)

    def run(self, job: Path, world: int, seconds: float, *, prelude: Sequence[str]) -> Ended:
        self._count += 1
        base = self._folder / f"rank-{self._count}"
        (base / "records").mkdir(parents=True)
        command = {
            "job": str(job), "world": world, "records": str(base / "records"), "log": str(base / "log"),
            "environment": {}, "prelude": list(prelude),
        }  # fmt: skip
        process, self._next = self._next, self._spare()
        assert process.stdin is not None
        process.stdin.write(json.dumps(command) + "\n")
        process.stdin.close()
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        log = base / "log.0"
        return Ended([code], records.read(base / "records"), [log.read_text() if log.exists() else ""])

    def close(self) -> None:
        self._next.kill()
        self._next.wait()


@dataclass
class Trained:
    """What a job left that ended well."""

    work: Path
    measures: dict[str, Any]
    log: list[dict[str, Any]]
    estimate: int
    """Bytes that the preflight took for what training needs, activations included."""

    @property
    def losses(self) -> list[float]:
        return [float(line["loss"]) for line in self.log if "loss" in line]

    @property
    def step_seconds(self) -> float:
        """Median of the steps but the first two, which compile."""
        times = [end - begin for begin, end in zip(self.measures["begin"], self.measures["end"], strict=True)]
        return sorted(times[2:])[len(times[2:]) // 2]

    def gap(self, step: int) -> float:
        """Seconds from the end of a step to the beginning of the next."""
        index = step - self.measures["first"]
        return float(self.measures["begin"][index + 1] - self.measures["end"][index])


class Machine:
    """This machine: what runs jobs of `shape` on its device."""

    def __init__(self, folder: Path, starter: Starter, *, device: str, shape: str) -> None:
        self.device, self._starter, self._folder = device, starter, folder
        self._shape: Shape = SHAPES[shape]
        self.deadline = math.inf
        """Of the part that runs, on time.monotonic's clock."""
        self.model = folder / "model"
        self.done: dict[str, Trained] = {}
        """Jobs that ended well, for the parts that compare."""

    def prepare(self) -> None:
        """Write the model and the rows: random, from seeds."""
        make_model(self.model, self._shape)
        make_rows(self._folder / "pairs.jsonl", self._shape, 40)

    def train(
        self, name: str, kind: str, *, prelude: str = "", again: bool = False, lives: bool = True, **sections: Any
    ) -> Trained:
        """Run a job to its end and return what it left; AssertionError with the end of its log if it failed.

        `prelude` are arguments of instruments.install. `again`: the next attempt of the job `name`. `lives`: False if
        the prelude kills it, and then nothing is read.
        """
        folder = self._folder / name
        folder.mkdir(exist_ok=again)
        self._write_rows(folder / "train.jsonl", kind)
        shape, grpo = self._shape, kind == "GRPOJob"
        training = {
            "maxSteps": STEPS, "perDeviceBatchSize": shape.batch, "learningRate": 1e-4, "precision": "bf16",
            "maxLength": None if grpo else shape.max_length, "loggingSteps": 1,
        }  # fmt: skip
        spec = {
            "dataset": {"evalSplit": 0},
            "checkpoint": {"everySteps": STEPS},
            **sections,
            "training": {**training, **sections.get("training", {})},
        }
        path = job_file(
            folder, self.model, kind, spec=spec, numProcPerNode=1, hasGpus=self.device == "cuda", attempt=int(again)
        )
        self._run(path, f"instruments.install({prelude})", dies=not lives)
        work = folder / "storage" / "uid-1"
        if not lives:
            return Trained(work, {}, [], 0)
        lines = (work / "metrics.jsonl").read_text().splitlines()
        measures = json.loads((work / "measures.json").read_text())
        memory = json.loads((work / "preflight.json").read_text())["memory"]
        parts = ("weights", "gradients", "optimizer", "gathered", "beside", "activations")
        found = Trained(work, measures, [json.loads(line) for line in lines], sum(memory[part] for part in parts))
        assert all(math.isfinite(loss) for loss in found.losses), found.losses
        self.done[name] = found
        return found

    def call(self, code: str) -> None:
        """Run `code` in a rank's process, where `instruments` is imported, instead of a job."""
        self._run(self._folder, f"{code}\nos._exit(0)", dies=False)

    def _run(self, job: Path, code: str, *, dies: bool) -> None:
        seconds = max(1, self.deadline - time.monotonic())
        lines = f"import os, sys\nsys.path.insert(0, {str(HERE)!r})\nimport instruments\n{code}"
        ended = self._starter.run(job, 1, seconds, prelude=[lines])
        wanted = [-9] if dies else [0]
        said = ended.records[0].message if 0 in ended.records else "\n".join(ended.logs[0].splitlines()[-8:])
        late = time.monotonic() > self.deadline
        assert ended.codes == wanted, f"{'its time was up' if late else f'exit code {ended.codes[0]}'}: {said}"

    def _write_rows(self, path: Path, kind: str) -> None:
        pairs = [json.loads(line) for line in (self._folder / "pairs.jsonl").read_text().splitlines()]
        if kind == "SFTJob":
            pairs = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
        if kind == "GRPOJob":
            pairs = [{"prompt": pair["prompt"]} for pair in pairs]
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def forget(self, *names: str) -> None:
        """Remove the files of jobs that nobody reads any more: a checkpoint of a 0.5B model has 6 GB."""
        for name in names:
            shutil.rmtree(self._folder / name / "storage", ignore_errors=True)
