"""One rank of one attempt, from the job file to the exported model."""

import json
import os
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import Trainer

from trl_contract.jobfile import JobFile
from trl_contract.report import EvaluationReport, ExitRecord
from trl_trainer import cpu_fsdp, data, evaluation, export, fence, model, publisher, records, world
from trl_trainer.errors import Preempted
from trl_trainer.pace import AlreadyTrained, Pace
from trl_trainer.progress import Reporter, Sender, metrics_of
from trl_trainer.publisher import FiniteGuard, LoadGuard, Publisher
from trl_trainer.sharding import ShardingCheck
from trl_trainer.stages import dpo, reward, sft
from trl_trainer.termination import Termination
from trl_trainer.watchdog import Watchdog
from trl_trainer.world import Run

STAGES: dict[str, ModuleType] = {"SFTJob": sft, "RewardJob": reward, "DPOJob": dpo}


def main(job: JobFile, termination: Termination) -> int:
    """Run this rank to its end, leave its record, and return the exit code of its class."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        record = train(job, termination)
    except (Exception, Preempted) as error:
        traceback.print_exception(error)
        record = records.failure(error, attempt=job.attempt, rank=rank)
    folder = os.environ.get("TRL_RECORDS")
    if folder is not None:
        records.write(Path(folder), rank, record)
    return records.exit_code(record)


def train(job: JobFile, termination: Termination) -> ExitRecord:
    """Load, train, evaluate, export; return the SUCCEEDED record. What goes wrong is raised."""
    cpu_fsdp.enable()
    run = world.start(job)
    fence.claim(run.work, job.attempt)
    reporter = Reporter(job.attempt, run.work / "metrics.jsonl", Sender(os.environ if run.is_main else {}))
    tokenizer = model.tokenizer(job)
    rows = load_data(run, tokenizer)
    reporter.update(warnings=[text[:300] for text in rows.report.warnings()[:8]])
    if run.is_main:
        _write(run.work / "resolved.json", job.to_wire())
    trainer: Trainer = STAGES[job.kind].trainer(run, tokenizer, rows)
    before = evaluation.Before(run, trainer, tokenizer, prompts(job), rows.report.conversational)
    fit(run, trainer, before, reporter, termination)

    reporter.activity("exporting")
    folder = export.weights(run, trainer, tokenizer)
    reporter.activity("evaluating")
    after = evaluation.measure(run, trainer)
    answers = evaluation.answers(run, trainer, tokenizer, prompts(job), rows.report.conversational)
    reporter.update(
        activity="exporting",
        evaluation=EvaluationReport(before=metrics_of(before.metrics, 24), after=metrics_of(after, 24)),
    )
    artifacts = []
    if folder is not None:
        write_samples(folder / "samples.jsonl", prompts(job), before.answers, answers)
        _write(folder / "resolved.json", job.to_wire())
        artifacts = export.publish(run, folder)
    reporter.close()
    world.barrier(run)
    record = ExitRecord(
        outcome="Succeeded",
        attempt=job.attempt,
        rank=run.rank,
        time=records.now(),
        step=trainer.state.global_step,
        message=f"trained {trainer.state.global_step} steps",
        artifacts=artifacts,
        progress=reporter.state if run.is_main else None,
    )
    world.leave(run)
    return record


def fit(run: Run, trainer: Trainer, before: evaluation.Before, reporter: Reporter, termination: Termination) -> None:
    """Train to the last step, from the newest checkpoint if there is one; Preempted if SIGTERM cut it short."""
    choice = publisher.choose(run)
    for line in choice.skipped:
        print(f"rank {run.rank}: {line}", flush=True)
    reporter.update(warnings=[*reporter.state.warnings, *(line[:300] for line in choice.skipped)][:8])
    guard, load_guard, pace = FiniteGuard(), LoadGuard(), Pace(run, trainer, termination)
    watchdog = Watchdog(run.job.stall_timeout_seconds, run.job.attempt, run.rank)
    # In this order at every event: first what may end the run, then what saves, then what decides and reports.
    callbacks = [load_guard, ShardingCheck(trainer, run.world), guard, watchdog, before]
    callbacks += [Publisher(run, guard, reporter), *([reporter] if run.is_main else []), pace]
    for callback in callbacks:
        trainer.add_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=choice.path)
    except AlreadyTrained:
        print(f"rank {run.rank}: trained to the last step by an earlier attempt", flush=True)
    except Exception as error:
        raise load_guard.explain(run, choice, error) from error
    finally:
        watchdog.stop()
    if pace.preempted:
        raise Preempted(f"stopped by SIGTERM; step {trainer.state.global_step} is saved")


def load_data(run: Run, tokenizer: Any) -> data.Data:
    """Return the rows: rank 0 writes them, the others read what it wrote."""
    if run.is_main:
        found = data.load(run.job, tokenizer, run.work, run.rank)
        world.barrier(run)
        return found
    world.barrier(run)
    return data.load(run.job, tokenizer, run.work, run.rank)


def prompts(job: JobFile) -> list[str]:
    """Return evaluation.samplePrompts (a reward model answers nothing)."""
    return list(getattr(job.spec.evaluation, "sample_prompts", []))


def write_samples(path: Path, prompts: list[str], before: list[str], after: list[str]) -> None:
    """Write one line per prompt with the base model's answer and the tuned one's."""
    rows = [{"prompt": p, "before": b, "after": a} for p, b, a in zip(prompts, before, after, strict=True)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False))
