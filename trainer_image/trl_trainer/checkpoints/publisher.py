"""Turns what transformers saved into a published checkpoint, with all ranks taking part."""

import math
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_contract.report import CheckpointReport
from trl_trainer.checkpoints import checkpoint, fence, origin
from trl_trainer.checkpoints.writer import Writer
from trl_trainer.distributed.world import Run, broadcast, gather, writers
from trl_trainer.errors import TrainerError
from trl_trainer.launch.records import classify, now
from trl_trainer.reports.progress import Reporter, metrics_of

LEAST_SCALE = 1.0
"""GradScaler begins with 65536."""


class FiniteGuard(TrainerCallback):
    """Ends the run when the loss or the gradient norm is no number. Every checkpoint's step is logged before it is
    saved (Schedule sees to it), so none with such weights is ever published. Both values are the same on all ranks.

    With fp16 a gradient norm that is no number is how `scaler` (torch.amp.GradScaler) finds its scale: it leaves the
    step out and halves the scale. Below LEAST_SCALE no scale will do.
    """

    def __init__(self, scaler: Any = None) -> None:
        self.last: dict[str, float] = {}
        self._scaler = scaler

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
        seen = {name: float(logs[name]) for name in ("loss", "grad_norm") if name in logs}
        self.last = {name: value for name, value in seen.items() if math.isfinite(value)}
        odd = seen.keys() - self.last.keys()
        if odd and not (odd == {"grad_norm"} and self._finds_its_scale()):
            said = ", ".join(f"{name} {value}" for name, value in seen.items())
            raise TrainerError(
                "NonFiniteLoss",
                f"step {state.global_step}: {said}. Lower training.learningRate or raise warmupSteps, and look for odd "
                "rows; checkpoints of earlier steps are kept",
            )

    def _finds_its_scale(self) -> bool:
        return self._scaler is not None and self._scaler.get_scale() >= LEAST_SCALE


class Publisher(TrainerCallback):
    """Publishes every checkpoint that transformers has saved, then removes what is too old; all that in the writer's
    thread. Training waits for it only before the next checkpoint (Schedule does), and at its end."""

    def __init__(self, run: Run, guard: FiniteGuard, reporter: Reporter, writer: Writer) -> None:
        self._run = run
        self._guard = guard
        self._reporter = reporter
        self._writer = writer

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._writer.start(partial(self._publish, state.global_step, now(), self._guard.last, self._reporter.trained))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._writer.check()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.wait()

    def wait(self) -> None:
        """Return when what was saved is published; what went wrong is raised."""
        self._reporter.activity("saving")
        self._writer.wait()
        self._reporter.activity("training")

    def _publish(self, step: int, time: str, metrics: dict[str, float], trained: float) -> None:
        run, folder = self._run, self._run.work / f"checkpoint-{step}"
        files = [file for part in gather(run, checkpoint.own_files(folder, run.rank), writers()) for file in part]

        def publish() -> None:
            fence.check(run.work, run.job.attempt)
            manifest = checkpoint.Manifest(
                uid=run.job.uid,
                attempt=run.job.attempt,
                step=step,
                world_size=run.world,
                time=time,
                metrics=metrics,
                training_seconds=trained,
                files=files,
                versions=checkpoint.versions(),
            )
            checkpoint.publish(folder, manifest)
            checkpoint.retain(run.work, run.job.spec.checkpoint.keep)

        broadcast(run, publish, writers())
        if run.is_main:
            self._reporter.update(checkpoints=reports(run))


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
        """Return the error to raise for one that train() raised: a checkpoint of this job that verified and cannot be
        loaded is marked, by the rank that knows it, so that a later attempt falls back to the one before."""
        if self.loaded or choice.path is None or classify(error)[0] != "Unknown":
            return error
        if Path(choice.path).parent == run.work:
            checkpoint.mark_bad(Path(choice.path), run.job.attempt, str(error))
        return TrainerError("CheckpointCorrupt", f"{choice.path} verifies but cannot be loaded: {error}")


def choose(run: Run) -> checkpoint.Choice:
    """Return what this attempt starts from, the same on all ranks; later folders are gone when this returns.

    UserError if the job is to go on from an earlier one (origin.py), and cannot."""

    def decide() -> checkpoint.Choice:
        choice = checkpoint.choose(run.work, run.job.uid, run.world)
        if choice.path is None and run.job.paths.resume_from is not None:
            first = origin.choose(run.job)
            choice = first.model_copy(update={"skipped": [*choice.skipped, *first.skipped], "training_seconds": 0})
        checkpoint.clear_after(run.work, choice.step)
        return choice

    return broadcast(run, decide)
