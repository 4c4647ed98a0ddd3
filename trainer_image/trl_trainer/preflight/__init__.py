"""Everything that can be known to fail is found here, before weights are loaded, in seconds."""

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from trl_contract.base import Model
from trl_contract.jobfile import JobFile
from trl_contract.report import EvaluationSkipped, FailureReason
from trl_contract.spec import GRPOSpec
from trl_trainer.data import DataReport, Tokenize, Written, template
from trl_trainer.errors import UserError
from trl_trainer.launch import host_memory
from trl_trainer.launch.host_memory import size
from trl_trainer.launch.network import with_token
from trl_trainer.models import arguments, skeleton, source
from trl_trainer.preflight import (
    architecture,
    ends,
    evaluations,
    findings,
    host,
    lengths,
    memory,
    padding,
    references,
    samples,
)
from trl_trainer.preflight.architecture import Architecture
from trl_trainer.preflight.clock import Clock
from trl_trainer.preflight.lengths import Lengths
from trl_trainer.preflight.memory import MemoryEstimate
from trl_trainer.preflight.quantities import OPTIMIZER_BYTES, Sizes
from trl_trainer.stage import Stage

RESOLVED = "resolved.json"
"""In the job's folder and in the final model's: the job with all defaults and decisions."""


class Preflight(Model):
    """What is known before training; shown by `explain` and written into the job's folder."""

    architecture: str
    parameters: int
    trainable_parameters: int
    target_modules: list[str] | None = None
    """What gets an adapter; None without one."""
    data: DataReport
    lengths: Lengths
    total_steps: int | None
    """Optimizer steps; None with packing, where the rows decide."""
    memory: MemoryEstimate
    checkpoint_bytes: int
    """Size of one checkpoint."""
    free_bytes: int
    """Free space on the storage volume."""
    findings: list[str]
    """What is worth a look, most important first."""
    evaluation_skipped: EvaluationSkipped | None = None
    """Why nothing is evaluated although the job asks for it."""
    padded: str | None = None
    """Why the run computes padding although it may do without; None if it does not, or may not."""
    too_little: tuple[FailureReason, str] | None = None
    """Reason and message if this machine has too little memory or disk; another one may have enough."""


def run(
    job: JobFile, stage: Stage, tokenizer: Any, tokenize: Tokenize, rows: Written, work: Path, device: str, clock: Clock
) -> Preflight:
    """Return what is known about a resolved job before its weights are loaded. UserError when it cannot work here."""
    base, seen = look(job, stage, tokenizer, tokenize, rows, clock)
    with clock.check("memory and findings"):
        found = judge(job, stage, tokenizer, rows, base, seen, work, device)
    if found.too_little is not None:
        raise UserError(*found.too_little)
    return found


def look(
    job: JobFile, stage: Stage, tokenizer: Any, tokenize: Tokenize, rows: Written, clock: Clock
) -> tuple[Architecture, Lengths]:
    """Return what the model is, and how long the rows are.

    UserError for an extra argument of the wrong type, a model that is not there or of the wrong kind, a tokenizer that
    does not fit, an option that the data do not allow, too few rows.
    """
    arguments.extra(job.spec.training)
    with clock.check("model"):
        base = architecture.inspect(job, stage)
        check_tokenizer(job, tokenizer, base)
        stage.check(job, tokenizer, rows.report)
        evaluations.check_metric(job, stage)
    with clock.check("lengths"):
        return base, lengths.measure(job, stage, rows, tokenizer, tokenize)


def judge(
    job: JobFile,
    stage: Stage,
    tokenizer: Any,
    rows: Written,
    base: Architecture,
    seen: Lengths,
    work: Path,
    device: str,
) -> Preflight:
    """Return all that is known about a resolved job before its weights are loaded, from what `look` has found.

    UserError when it can work nowhere.
    """
    job = references.decided(job, seen.kept)
    _check_positions(job, base, seen)
    samples.check(job, tokenizer, base, conversational=rows.report.conversational)
    _check_held_out(job, rows.report, seen)
    total_steps = stage.total_steps(job, seen.kept)
    numbers = sizes(job, base, seen)
    needs = memory.estimate(job, numbers, available(job, device), device)
    checkpoint, free = checkpoint_bytes(job, base), shutil.disk_usage(work).free
    final = base.parameters * (2 if job.spec.peft.method != "none" and job.spec.training.precision != "fp32" else 4)
    skipped = evaluation_skipped(job, rows.report, seen)
    padded = padding.refusal(job, stage, device) if padding.may_do_without(job) else None
    too_little = _too_little_memory(needs) or _too_little_disk(checkpoint, final, free)
    found = [
        *rows.report.warnings(),
        *findings.row_lengths(job, base, seen),
        *([f"evaluation is skipped: {skipped.message}"] if skipped else findings.held_out(job, seen)),
        *findings.warmup(job, total_steps),
        *evaluations.findings(job, stage, seen.kept, total_steps),
        *findings.experts(base),
        *([f"training.paddingFree: the run is padded: {padded}"] if padded else []),
        *findings.vocabulary(job, base),
        *ends.findings(job, stage, tokenizer, base, rows),
        *template.unread_options(
            tokenizer, job.spec.dataset.chat_template_kwargs, conversational=rows.report.conversational
        ),
        *stage.findings(job, tokenizer, rows.report),
    ]
    if too_little is None:
        found += [*findings.tight_memory(needs), *findings.disk(job, checkpoint, final, free)]
    found += findings.host_memory(host_needs(job, needs, numbers, base), host_memory.available())
    return Preflight(
        architecture=base.name,
        parameters=base.parameters,
        trainable_parameters=base.trainable,
        target_modules=base.targets,
        data=rows.report,
        lengths=seen,
        total_steps=total_steps,
        memory=needs,
        checkpoint_bytes=checkpoint,
        free_bytes=free,
        findings=found,
        evaluation_skipped=skipped,
        padded=padded,
        too_little=too_little,
    )


def decide(job: JobFile, known: Preflight) -> JobFile:
    """Return the job with what is decided here filled in: training.gradientCheckpointing by the memory estimate,
    training.paddingFree by the model, dpo.referenceModel.mode by the number of epochs, and peft.targetModules by the
    model, where `all-linear` stands beside other names."""
    job = references.decided(job, known.lengths.kept)
    changes = {
        "gradient_checkpointing": known.memory.gradient_checkpointing,
        "padding_free": "auto" if padding.may_do_without(job) and known.padded is None else "never",
    }
    training = job.spec.training.model_copy(update=changes)
    peft = job.spec.peft.model_copy(update={"target_modules": known.target_modules})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"training": training, "peft": peft})})


def pinned(job: JobFile, work: Path) -> JobFile:
    """Return the job with what an earlier attempt, if there was one, has decided by the memory estimate: another node's
    GPU must not change it. After an attempt that ran out of memory it is decided anew."""
    path, training = work / RESOLVED, job.spec.training
    if job.shrunk or training.gradient_checkpointing is not None or not path.exists():
        return job
    earlier = json.loads(path.read_text())["spec"]["training"].get("gradientCheckpointing")
    training = training.model_copy(update={"gradient_checkpointing": earlier})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"training": training})})


def _check_positions(job: JobFile, base: Architecture, seen: Lengths) -> None:
    """Raise UserError if a sequence is longer than the table of positions that the model looks them up in."""
    longest_row = max(seen.longest, seen.held_out_longest)
    longest = job.spec.sequence_length(longest_row)
    if not base.looks_up_positions or base.positions is None or longest <= base.positions:
        return
    if isinstance(job.spec, GRPOSpec):
        raise UserError(
            "InvalidSpec",
            f"grpo.generation.maxCompletionLength: {job.spec.grpo.generation.max_completion_length} tokens after a"
            f" prompt of {longest_row} are more than the {base.positions} positions that a {base.name} has: lower it,"
            " or dataset.maxPromptLength",
        )
    raise UserError(
        "InvalidSpec",
        f"training.maxLength: a row of {longest} tokens is longer than the {base.positions} positions that a"
        f" {base.name} has: set it to at most {base.positions}",
    )


def _check_held_out(job: JobFile, report: DataReport, seen: Lengths) -> None:
    needs = {
        "evaluation.earlyStopping": job.spec.evaluation.early_stopping,
        "reward.minAccuracy": job.spec.least_accuracy,
    }
    field = next((name for name, given in needs.items() if given is not None), None)
    if field is not None and not _num_held_out(report, seen):
        raise UserError("InvalidSpec", f"{field} needs held-out rows: give dataset.eval or evalSplit")


def _num_held_out(report: DataReport, seen: Lengths) -> int:
    return 0 if seen.held_out_dropped == seen.held_out else report.eval


def evaluation_skipped(job: JobFile, report: DataReport, seen: Lengths) -> EvaluationSkipped | None:
    """Return why there is nothing to evaluate on; None if there is something, or nothing was asked for."""
    evaluation, dataset = job.spec.evaluation, job.spec.dataset
    if not evaluation.enabled or _num_held_out(report, seen):
        return None
    if report.eval:
        return EvaluationSkipped(reason="HeldOutRowsDropped", message=findings.dropped(job, seen))
    if dataset.eval is None and dataset.eval_split == 0 and not evaluation.is_repeated:
        return None  # as asked for
    return EvaluationSkipped(
        reason="NoHeldOutRows", message="no rows are held out (dataset.eval, or evalSplit of at least two rows)"
    )


def _too_little_memory(needs: MemoryEstimate) -> tuple[FailureReason, str] | None:
    if needs.certain <= needs.available:
        return None
    change = f"smallest change that fits: {needs.change}" if needs.change else "no single change fits"
    # Not one of the OutOf...Memory reasons: those are tried again, and this cannot pass by itself.
    return "InvalidSpec", f"the job needs {needs.describe()}; {change}"


def _too_little_disk(checkpoint: int, final: int, free: int) -> tuple[FailureReason, str] | None:
    if free >= checkpoint + final:
        return None
    return (
        "StorageFull",
        f"storage: {size(free)} are free, but one checkpoint ({size(checkpoint)}) and the final model"
        f" ({size(final)}) need {size(checkpoint + final)}",
    )


def check_tokenizer(job: JobFile, tokenizer: Any, base: Architecture) -> None:
    """Raise UserError if the tokenizer has tokens that the model does not know, or lacks one that TRL needs."""
    highest = max(tokenizer.get_vocab().values())
    if highest >= base.vocabulary:
        raise UserError(
            "InvalidSpec",
            f"model: the tokenizer has token {highest}, but the model knows only {base.vocabulary}:"
            " they do not belong together",
        )
    if tokenizer.eos_token is None:
        raise UserError(
            "InvalidSpec", "model.eosToken: the tokenizer has no end-of-text token: name one of its tokens here"
        )


def sizes(job: JobFile, base: Architecture, seen: Lengths) -> Sizes:
    """Return what the memory estimate needs to know."""
    model = {field.name: getattr(base, field.name) for field in fields(Sizes) if hasattr(base, field.name)}
    return Sizes(
        **model,
        length=job.spec.sequence_length(seen.longest),
        prompt=seen.longest if isinstance(job.spec, GRPOSpec) else 0,
        other_model=_explicit_reference(job, base),
        reward_models=_reward_models(job),
    )


def _explicit_reference(job: JobFile, base: Architecture) -> int:
    given = job.spec.explicit_reference
    if given is None:
        return 0
    where = source.explicit_reference(job, given)
    field = "dpo.referenceModel.source"
    if job.paths.reference_model is not None:
        architecture.check_weights(Path(where), field)
    with with_token(job.spec, given.hub):
        config = source.read_config(where, given.revision, field)
        architecture.check_unquantized(config, where, field)
        if config.get_text_config().vocab_size < base.vocabulary:
            raise UserError("InvalidSpec", f"{field}: {where} knows fewer tokens than the model that is trained")
        found = architecture.covered(where, given.revision, config, field, classifier=False)
    return int(found.model.num_parameters())


def _reward_models(job: JobFile) -> int:
    """Return the bytes of all reward models, in the precision of the arithmetic."""
    total = 0
    for reward in job.spec.rewards:
        if reward.reward_model is not None:
            where, hub = source.reward_model(job, reward)
            revision, field = hub.revision if hub else None, f"grpo.rewards.{reward.name}"
            with with_token(job.spec, hub):
                config = architecture.classifier_config(where, revision, field)
            total += skeleton.build(config, classifier=True).num_parameters()
    return total * (2 if job.spec.training.precision != "fp32" else 4)


def available(job: JobFile, device: str) -> int:
    """Return the bytes that one process may use."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    return host_memory.available() // job.num_proc_per_node


def checkpoint_bytes(job: JobFile, base: Architecture) -> int:
    """Return the size of a checkpoint: what is trained in fp32, and the optimizer's state."""
    optimizer = {"paged_adamw_8bit": 2.0}.get(job.spec.training.optimizer, OPTIMIZER_BYTES[job.spec.training.optimizer])
    # The full form holds the weights twice when all are trained: transformers' own file beside accelerate's.
    whole = job.spec.fsdp.state_dict_type == "full" and job.spec.peft.method == "none"
    twice = 4 if whole and job.world_size > 1 else 0
    return round(base.trainable * (4 + twice + optimizer))


def host_needs(job: JobFile, needs: MemoryEstimate, numbers: Sizes, base: Architecture) -> dict[str, int]:
    """Return what the processes of one node need of the host's memory (host.of_node)."""
    return host.of_node(job, needs, numbers, checkpoint_bytes(job, base), skeleton.PART_BYTES)
