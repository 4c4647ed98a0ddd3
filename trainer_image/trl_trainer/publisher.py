"""Turns what transformers saved into a published checkpoint, with all ranks taking part."""

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_contract.report import CheckpointReport
from trl_trainer import checkpoint, fence
from trl_trainer.errors import TrainerError
from trl_trainer.progress import Reporter, metrics_of
from trl_trainer.records import classify, now
from trl_trainer.world import Run, barrier, broadcast, gather


class FiniteGuard(TrainerCallback):
    """Ends the run when the loss or the gradient norm is no number. Every checkpoint's step is logged before it is
    saved, so none with such weights is ever published. Both values are the same on all ranks."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        self.last = {name: float(logs[name]) for name in ("loss", "grad_norm") if name in logs}
        if not all(math.isfinite(value) for value in self.last.values()):
            said = ", ".join(f"{name} {value}" for name, value in self.last.items())
            raise TrainerError(
                "NonFiniteLoss",
                f"step {state.global_step}: {said}. Lower training.learningRate or raise warmupSteps, and look for odd "
                "rows; checkpoints of earlier steps are kept",
            )


class Publisher(TrainerCallback):
    """Publishes every checkpoint that transformers has saved, then removes what is too old."""

    def __init__(self, run: Run, guard: FiniteGuard, reporter: Reporter) -> None:
        self._run = run
        self._guard = guard
        self._reporter = reporter

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        run, folder = self._run, self._run.work / f"checkpoint-{state.global_step}"
        self._reporter.activity("saving")
        barrier(run)
        files = [file for part in gather(run, checkpoint.own_files(folder, run.rank)) for file in part]
        broadcast(run, lambda: self._publish(folder, state.global_step, files))
        self._reporter.update(activity="training", checkpoints=reports(run))

    def _publish(self, folder: Path, step: int, files: list[checkpoint.File]) -> None:
        fence.check(self._run.work, self._run.job.attempt)
        manifest = checkpoint.Manifest(
            uid=self._run.job.uid,
            attempt=self._run.job.attempt,
            step=step,
            world_size=self._run.world,
            time=now(),
            metrics=self._guard.last,
            files=files,
            versions=checkpoint.versions(),
        )
        checkpoint.publish(folder, manifest)
        checkpoint.retain(self._run.work, self._run.job.spec.checkpoint.keep)


def reports(run: Run) -> list[CheckpointReport]:
    """Return the newest published checkpoints as the status shows them, oldest first."""
    found = []
    for _, folder in checkpoint.published_paths(run.work)[:5]:
        manifest = checkpoint.Manifest.model_validate_json((folder / checkpoint.MANIFEST).read_text())
        found.append(
            CheckpointReport(
                step=manifest.step,
                path=f"{run.job.uid}/{folder.name}",
                time=manifest.time,
                metrics=metrics_of(manifest.metrics, 8),
            )
        )
    return found[::-1]


class LoadGuard(TrainerCallback):
    """Tells a checkpoint that cannot be loaded from a failure while training."""

    def __init__(self) -> None:
        self.loaded = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.loaded = True

    def explain(self, run: Run, choice: checkpoint.Choice, error: Exception) -> Exception:
        """Return the error to raise for one that train() raised: a checkpoint that verified and cannot be loaded is
        marked, by the rank that knows it, so that a later attempt falls back to the one before."""
        if self.loaded or choice.path is None or classify(error)[0] != "Unknown":
            return error
        checkpoint.mark_bad(Path(choice.path), run.job.attempt, str(error))
        return TrainerError("CheckpointCorrupt", f"{choice.path} verifies but cannot be loaded: {error}")


def choose(run: Run) -> checkpoint.Choice:
    """Return what this attempt starts from, the same on all ranks; later folders are gone when this returns."""

    def decide() -> checkpoint.Choice:
        choice = checkpoint.choose(run.work, run.job.uid, run.world)
        checkpoint.clear_after(run.work, choice.step)
        return choice

    return broadcast(run, decide)
