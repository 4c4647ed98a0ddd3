"""One rank of one attempt, from the job file to the exported model."""

import json
import os
import shutil
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from trl_contract.jobfile import JobFile
from trl_contract.report import Artifact, EvaluationReport, ExitRecord
from trl_trainer import data, files, preflight, rewards, stages
from trl_trainer.checkpoints import checkpoint, early_stopping, fence, origin, publisher
from trl_trainer.checkpoints.form import Form
from trl_trainer.checkpoints.publisher import FiniteGuard, LoadGuard, Publisher
from trl_trainer.checkpoints.schedule import AlreadyTrained, Schedule
from trl_trainer.checkpoints.writer import Writer, plain_errors
from trl_trainer.distributed import cpu_fsdp, loading, precision, sharding, world
from trl_trainer.distributed.world import Run
from trl_trainer.errors import Preempted, UserError
from trl_trainer.launch import network, records, watchdog
from trl_trainer.launch.termination import Termination
from trl_trainer.launch.watchdog import Watchdog
from trl_trainer.models import arguments, base, inherited, vocabulary
from trl_trainer.models.tokenizer import load_tokenizer
from trl_trainer.padding_free.check import PaddingCheck
from trl_trainer.preflight import Preflight, ends, image, steps
from trl_trainer.preflight.clock import Clock
from trl_trainer.reports import tracking
from trl_trainer.reports.beats import Beats
from trl_trainer.reports.progress import Reporter, Sender, metrics_of
from trl_trainer.results import card, evaluation, export
from trl_trainer.rewards import Rewards
from trl_trainer.stage import Stage


def main(job: JobFile, termination: Termination) -> int:
    """Run this rank to its end, leave its record, and return the exit code of its class."""
    rank = int(os.environ.get("RANK", "0"))
    sender = Sender(os.environ if rank == 0 else {})
    work = Path(job.paths.storage) / job.uid
    scores, writer = Rewards([]), Writer()
    network.be_patient(job.stall_timeout_seconds)
    gpus = job.world_size if torch.cuda.is_available() else 0
    warns = job.spec.profile != "smoke"
    reporter = Reporter(job.attempt, work / "metrics.jsonl", sender, lambda: scores.report(), gpus, warns=warns)
    saved = partial(checkpoint.newest_bytes, work)
    Watchdog(job.stall_timeout_seconds, saved, attempt=job.attempt, rank=rank, world=job.world_size).start()
    try:
        if rank == 0 and job.digests:
            watchdog.enter("checking what earlier jobs have left")
            inherited.check(job)
        # Child processes of rewards come before the process group's threads.
        scores = rewards.build(job)
        record = train(job, scores, reporter, termination, writer)
        termination.watched = True
    except (Exception, Preempted) as error:
        # From here on SIGTERM only sets a flag: it comes when another rank has ended, and must not take the record.
        termination.watched = True
        failed = records.now()
        reason, message = records.classify(error)
        if records.says_all(error):
            print(f"rank {rank}: {message}", flush=True)
        else:
            traceback.print_exception(error)
        if reason not in records.EFFECTS:
            # Without its peers it will not be published, and they are waiting for this rank's end.
            writer.settle()
        doing = watchdog.activity()
        record = records.failure(
            error, time=failed, attempt=job.attempt, rank=rank, progress=reporter.state, activity=doing
        )
    folder = os.environ.get(records.FOLDER)
    if folder is not None:
        records.write(Path(folder), rank, record)
    reporter.close(done=record.outcome == "Succeeded", artifacts=record.artifacts)
    scores.close()
    tracking.finish()
    if record.outcome == "Succeeded":
        # After the record, which is what counts: native teardown has been seen to abort.
        world.leave()
    return records.exit_code(record)


def train(job: JobFile, scores: Rewards, reporter: Reporter, termination: Termination, writer: Writer) -> ExitRecord:
    """Load, train, evaluate, export; return the SUCCEEDED record. What goes wrong is raised."""
    stage = stages.of(job)
    cpu_fsdp.enable()
    # Not judged: a peer may start late, and the process group has a limit of its own.
    with watchdog.led("joining the other ranks", leads=False):
        run = world.start(job)
    watchdog.enter("loading the tokenizer")
    fence.claim(run.work, job.attempt)
    if run.is_main:
        files.try_renames(run.work)
    image.check(job, stage, run.device)
    tokenizer = load_tokenizer(job)
    rows, known = load_data(run, stage, tokenizer, scores, reporter)
    # With packing the rows are full sequences now, perhaps fewer than the ranks: then accelerate repeats some.
    number = max(len(rows.train), run.world)
    run = replace(run, job=steps.by_epochs(preflight.decide(job, known), stage, number))
    tracking.begin(job, run.work, is_main=run.is_main)
    with watchdog.led("loading the model", leads=run.is_main):
        trainer = build(run, stage, tokenizer, rows, scores, known.memory.sync_each_batch, reporter.warn)
    stage.ready(run, trainer)
    if base.is_streamed(run):
        # transformers makes the optimizer of the parameters as they are now.
        sharding.check(trainer, run.world)
    before = evaluation.Before(run, stage, trainer, tokenizer, job.spec.sample_prompts, rows.report.conversational)
    fit(run, trainer, before, reporter, termination, writer)

    reporter.activity("exporting")
    with watchdog.led("exporting", leads=run.is_main):
        written = export.write(run, stage, trainer, tokenizer)
        world.barrier(run)
    reporter.activity("evaluating")
    watchdog.enter("evaluating", together=True)
    after = evaluation.measure(stage, trainer)
    answers = evaluation.answers(run, trainer, tokenizer, job.spec.sample_prompts, rows.report.conversational)
    reporter.update(
        activity="exporting",
        evaluation=EvaluationReport(before=metrics_of(before.metrics, 24), after=metrics_of(after, 24)),
    )
    step = trainer.state.global_step
    with watchdog.led("exporting", leads=run.is_main):
        artifacts = world.broadcast(run, lambda: finish(run, stage, written, rows, before, after, answers, step))
        world.barrier(run)
    return ExitRecord(
        outcome="Succeeded",
        attempt=job.attempt,
        rank=run.rank,
        time=records.now(),
        step=step,
        message=f"trained {step} steps",
        artifacts=artifacts,
        progress=reporter.state if run.is_main else None,
    )


def load_data(
    run: Run, stage: Stage, tokenizer: Any, scores: Rewards, reporter: Reporter
) -> tuple[data.Data, Preflight]:
    """Return the rows, checked and tokenized, and what is known about the job: rank 0 writes the rows, looks at
    everything that can be known before weights are loaded, and tokenizes them; the others read what it wrote.
    UserError when the job cannot work."""
    folder, known = run.work / "data", run.work / "preflight.json"
    job = preflight.pinned(run.job, run.work) if run.is_main else run.job

    def prepare(tell: data.Tell) -> str:
        clock = Clock()
        with clock.check("rows"):
            rows = data.write(job, stage, tokenizer, folder, tell)
        tokenize = stages.tokenizing(job, stage, tokenizer)
        seen = preflight.run(job, stage, tokenizer, tokenize, rows, run.work, run.device, clock)
        with clock.check("rewards"):
            findings = [*seen.findings, *scores.try_out(rows.train.take(range(3)))]
        for line in [*findings, str(clock)]:
            print(f"preflight: {line}", flush=True)
        reporter.update(
            warnings=[line[:300] for line in findings[:8]],
            evaluation_skipped=seen.evaluation_skipped,
            gradient_checkpointing=seen.memory.gradient_checkpointing,
        )
        write_json(known, seen.to_wire())
        decided = preflight.decide(job, seen)
        origin.prepare(decided, run.work, rows.report)
        write_json(run.work / preflight.RESOLVED, decided.to_wire())
        return data.build(job, stage, tokenizer, tokenize, rows, folder, tell)

    with watchdog.led("preparing the data", leads=run.is_main):
        name = data.together(run, prepare, reporter.preparing)
    reporter.activity("loading")
    watchdog.enter("loading the data")
    return data.load(folder / name), Preflight.model_validate_json(known.read_text())


def build(
    run: Run,
    stage: Stage,
    tokenizer: Any,
    rows: data.Data,
    scores: Rewards,
    sync_each_batch: bool,
    warn: Callable[[str], None],
) -> Trainer:
    """Return TRL's trainer for the job's kind, its model loaded and, with several processes, sharded."""
    found = arguments.arguments(
        run.job,
        stage,
        output_dir=str(run.work),
        world=run.world,
        device=run.device,
    )
    total = steps.total(run.job, stage, max(len(rows.train), run.world))
    found["warmup_steps"] = steps.warmup(run.job, total)
    if "num_decay_steps" in (schedule := found["lr_scheduler_kwargs"]):
        schedule["num_decay_steps"] = steps.decay(schedule["num_decay_steps"], found["warmup_steps"], total)
    if rows.eval is None:
        found["eval_strategy"] = "no"
    args = stage.config(**found)
    sharding.configure(args, run, sync_each_batch=sync_each_batch)
    trainer: Trainer = stage.trainer(run, args, tokenizer, rows, scores)
    ends.make_savable(trainer.model)
    if rows.report.conversational:
        ends.stop_there(trainer.model, tokenizer)
    vocabulary.complete_head(trainer.model)
    precision.keep_trained_in_fp32(trainer.model)
    if run.job.spec.training.padding_free == "auto":
        trainer.add_callback(PaddingCheck(run, trainer, stage, warn))
    if base.is_streamed(run):
        loading.shard(run, trainer)
    return trainer


def fit(
    run: Run,
    trainer: Trainer,
    before: evaluation.Before,
    reporter: Reporter,
    termination: Termination,
    writer: Writer,
) -> None:
    """Train to the last step, from the newest checkpoint if there is one; Preempted if SIGTERM cut it short."""
    watchdog.enter("loading the checkpoint")
    choice = publisher.choose(run)
    for line in choice.skipped:
        print(f"rank {run.rank}: {line}", flush=True)
    reporter.update(warnings=[*(line[:300] for line in choice.skipped), *reporter.state.warnings][:8])
    reporter.trained = choice.training_seconds
    guard, load_guard, form = FiniteGuard(trainer.accelerator.scaler), LoadGuard(), Form(trainer, choice.path)
    publishing = Publisher(run, guard, reporter, writer)
    schedule = Schedule(run, trainer, termination, publishing)
    # In this order at every event: first what may end the run, then what saves, then what decides and reports.
    rates = [origin.OwnRates()] if choice.path is not None and Path(choice.path).parent != run.work else []
    callbacks = [form, load_guard, *rates, sharding.ShardingCheck(trainer, run.world), guard, Beats(), before]
    callbacks += [publishing, *([reporter] if run.is_main else []), schedule]
    stopper = early_stopper(run, trainer)
    callbacks += [stopper] if stopper is not None else []
    for callback in callbacks:
        trainer.add_callback(callback)
    try:
        with writer.takes_shards(), plain_errors():
            trainer.train(resume_from_checkpoint=choice.path)
    except AlreadyTrained:
        termination.unwatch()
        if rates and trainer.state.global_step > trainer.state.max_steps:
            raise origin.too_far(str(choice.path), trainer.state.global_step, trainer.state.max_steps) from None
        if rates:
            reporter.warn(f"checkpoint.resumeFrom: {choice.path} is of the last step: nothing is left to train")
        print(f"rank {run.rank}: trained to the last step by an earlier attempt", flush=True)
    except Exception as error:
        explained = load_guard.explain(run, choice, error)
        if explained is error:
            # Not `from` itself: that would cut off what caused it.
            raise
        raise explained from error
    step, wanted = trainer.state.global_step, trainer.state.max_steps
    if schedule.preempted:
        raise Preempted(f"stopped by SIGTERM; step {step} is saved")
    if step < max(1, wanted) and not (stopper is not None and stopper.stopped):
        raise UserError(
            "DataFormatError", f"the data end after {step} of {wanted} steps: more rows, or a smaller batch"
        )


def early_stopper(run: Run, trainer: Trainer) -> early_stopping.Stopper | None:
    """Return what ends training early, if the job asks for it; UserError if there is nothing to look at."""
    given = run.job.spec.evaluation.early_stopping
    if given is not None and trainer.eval_dataset is None:
        raise UserError("InvalidSpec", "evaluation.earlyStopping needs held-out rows: give dataset.eval or evalSplit")
    return None if given is None else early_stopping.Stopper(given)


def finish(
    run: Run,
    stage: Stage,
    written: export.Written | None,
    rows: data.Data,
    before: evaluation.Before,
    after: dict[str, float],
    answers: list[str],
    step: int,
) -> list[Artifact]:
    """Put the samples, the settings and the card beside the weights and make all that `final/`. Rank 0 only.

    UserError if the model is not as good as the job asks for: then nothing is left of it but its checkpoints.
    """
    assert written is not None, "rank 0 has written the weights"
    folder = written.folder
    try:
        evaluation.check(run.job, after)
    except UserError:
        shutil.rmtree(folder)
        raise
    asked = run.job.spec.sample_prompts
    first = before.answers or [""] * len(asked)
    samples = [{"prompt": p, "before": b, "after": a} for p, b, a in zip(asked, first, answers, strict=True)]
    if samples:
        lines = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        (folder / "samples.jsonl").write_text("".join(lines))
    write_json(folder / preflight.RESOLVED, run.job.to_wire())
    text = card.text(
        run.job,
        stage,
        data=rows.report,
        parent=card.parent(run.job.paths.model),
        step=step,
        before=before.metrics,
        after=after,
        samples=samples,
    )
    (folder / "README.md").write_text(text)
    return export.make_final(run, written)


def write_json(path: Path, value: Any) -> None:
    files.write_whole(path, json.dumps(value, indent=1, ensure_ascii=False))
