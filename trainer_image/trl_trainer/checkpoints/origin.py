"""The earlier job that a run goes on from (checkpoint.resumeFrom): its folder is read, and never written to.

Only the first attempts do: as soon as a run has a checkpoint of its own, that is what it goes on from.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_contract.jobfile import JobFile
from trl_contract.spec import GRPOSpec
from trl_trainer.checkpoints import checkpoint, foreign
from trl_trainer.checkpoints.checkpoint import Choice
from trl_trainer.data.report import DataReport
from trl_trainer.errors import UserError
from trl_trainer.files import write_whole

MAY_DIFFER = (
    # What it has set is compared.
    "profile",
    "training.epochs",
    "training.maxSteps",
    "training.learningRate",
    "training.lrScheduler",
    "training.lrSchedulerArgs",
    "training.warmupSteps",
    "training.warmupRatio",
    "training.maxGradNorm",
    "training.loggingSteps",
    "training.gradientCheckpointing",
    "training.activationOffloading",
    "training.torchCompile",
    "training.paddingFree",
    "evaluation",
    "checkpoint",
    "tracking",
    "fsdp.reshardAfterForward",
    "fsdp.stateDictType",
    "dataset.workers",
    # What explicit compares with is its source.
    "dpo.referenceModel.mode",
    # By their product (_steps).
    "training.perDeviceBatchSize",
    "training.gradientAccumulationSteps",
    "grpo.stepsPerGeneration",
    # By the rows that come of them.
    "dataset.train",
    "dataset.mixture",
    "dataset.eval",
    "dataset.evalSplit",
    "dataset.maxExamples",
    "dataset.columns",
    "dataset.systemPrompt",
    "dataset.format",
    "dataset.asConversation",
    "dataset.maxBadRows",
    "dataset.maxPromptLength",
)
"""Fields of the resolved spec, or sections of it, that need not be the earlier job's. docs/resume.md tells them."""
REMEDY = "make it as it was there, or begin with that job's model; docs/resume.md has what may differ"
MAX_TOLD = 4


def prepare(job: JobFile, work: Path, rows: DataReport) -> None:
    """Return if the resolved job can go on from the earlier one, whose evaluation of the base model becomes this one's
    where the held-out rows are the same; UserError names each field that does not fit. Nothing is done where there is
    no earlier one, or `work` has checkpoints of its own. Rank 0 only."""
    if job.paths.resume_from is None or checkpoint.published_paths(work):
        return
    folder = Path(job.paths.resume_from)
    try:
        earlier = JobFile.model_validate_json((folder / "resolved.json").read_text())
        report = DataReport.model_validate_json((folder / "data" / "report.json").read_text())
    except (FileNotFoundError, ValidationError) as error:
        said = str(error).splitlines()[0]
        raise UserError(
            "InvalidSpec", f"checkpoint.resumeFrom: {folder} is of no job that can be read: {said}"
        ) from None
    if wrong := [*differences(earlier, job), *_other_rows(report, rows)]:
        more = [f"and {len(wrong) - MAX_TOLD} more"] if len(wrong) > MAX_TOLD else []
        told = "; ".join([*wrong[:MAX_TOLD], *more])
        raise UserError("InvalidSpec", f"checkpoint.resumeFrom: {told}: {REMEDY}")
    before = folder / "before.json"
    same = report.eval_file.digest == rows.eval_file.digest and earlier.spec.sample_prompts == job.spec.sample_prompts
    if same and job.spec.evaluation.at_start and before.exists() and not (work / before.name).exists():
        write_whole(work / before.name, before.read_text())


def differences(earlier: JobFile, job: JobFile) -> list[str]:
    """Return in words each field of the resolved `job` that must be what it is in `earlier`, and is not."""
    before, now = ({**dict(_flat(each.spec.to_wire())), **_whole(each)} for each in (earlier, job))
    return [
        f"{field} is {_said(now.get(field))}, and was {_said(before.get(field))} there"
        for field in sorted(before.keys() | now.keys())
        if before.get(field) != now.get(field) and not _is_free(field)
    ]


def _whole(job: JobFile) -> dict[str, Any]:
    """Return what is compared beside the fields of the spec, by what messages call it."""
    training = job.spec.training
    found = {
        "kind": job.kind,
        "the number of processes (numNodes x numProcPerNode)": job.world_size,
        "the presence of GPUs (resources.limits)": job.has_gpus,
        "training.perDeviceBatchSize x training.gradientAccumulationSteps": (
            training.per_device_batch_size * training.gradient_accumulation_steps
        ),
    }
    if isinstance(job.spec, GRPOSpec):
        sampled = training.per_device_batch_size * job.spec.steps_per_generation
        found["training.perDeviceBatchSize x grpo.stepsPerGeneration"] = sampled
    return found


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item


def _is_free(field: str) -> bool:
    return any(field == free or field.startswith(f"{free}.") for free in MAY_DIFFER)


def _said(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)[:80]


def _other_rows(before: DataReport, now: DataReport) -> list[str]:
    if before.train_file.digest == now.train_file.digest:
        return []
    return [
        f"dataset gives {now.train} training rows that are not the {before.train} that were trained on there (its"
        " sources, evalSplit and evaluation.maxExamples decide which these are)"
    ]


def choose(job: JobFile) -> Choice:
    """Return the earlier job's checkpoint of the step that is asked for, or its newest that verifies. UserError if
    there is none, or loading it would run code."""
    asked, folder = job.spec.checkpoint.resume_from, Path(str(job.paths.resume_from))
    step = None if asked is None else asked.step
    choice = checkpoint.choose(folder, folder.name, job.world_size, step)
    if choice.path is None:
        which = "a checkpoint that verifies" if step is None else f"a checkpoint of step {step} that verifies"
        steps = ", ".join(str(found) for found, _ in checkpoint.published_paths(folder)) or "none"
        why = "".join(f"; {line}" for line in choice.skipped)
        raise UserError("InvalidSpec", f"checkpoint.resumeFrom: {folder} has not {which}; it has steps: {steps}{why}")
    try:
        foreign.check(Path(choice.path))
    except ValueError as error:
        raise UserError("InvalidSpec", f"checkpoint.resumeFrom: {choice.path}: {error}") from None
    return choice


def too_far(path: str, step: int, wanted: int) -> UserError:
    """Return the error of a job that is to end before the step of another one's checkpoint."""
    return UserError(
        "InvalidSpec",
        f"checkpoint.resumeFrom: {path} is of step {step}, and this job ends at step {wanted}: steps count from the"
        " very beginning; raise training.maxSteps or training.epochs, or give an earlier step",
    )


class OwnRates(TrainerCallback):
    """Has a run that goes on from another job's checkpoint learn at the rates of its own spec, and log and evaluate as
    often as it says: transformers restores the earlier job's with the states of its optimizer and its trainer."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        state.compute_steps(args, state.max_steps)
        known, peak = lr_scheduler.state_dict(), args.learning_rate
        rates = [peak * factor(lr_scheduler.last_epoch) for factor in lr_scheduler.lr_lambdas]
        lr_scheduler.load_state_dict({**known, "base_lrs": [peak] * len(rates), "_last_lr": rates})
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["initial_lr"], group["lr"] = peak, rate
