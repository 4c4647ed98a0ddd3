"""What the status says of the spec, and of the choices that were made in it."""

from datetime import datetime

from trl_contract import cautions
from trl_operator.api.job import Job
from trl_operator.api.reported import WarningStatus
from trl_operator.api.status import Effective, JobStatus
from trl_operator.plan.topology import batch_size
from trl_operator.status.conditions import set_condition


def describe(job: Job, status: JobStatus, now: datetime) -> None:
    """Put into `status` what follows from the spec alone, sizes and conditions that warn of a choice, and that nothing
    is evaluated."""
    effective = status.effective or Effective()
    effective.batch_size = batch_size(job)
    effective.world_size = job.cluster.world_size
    effective.model = _model_name(job)
    status.effective, status.defaults = effective, job.defaults
    odd = cautions.of(job.info.kind, job.training, job.cluster.world_size)
    # What the trainer has told stays beside them.
    told = [found for found in status.warnings if found.reason not in cautions.REASONS]
    status.warnings = [*(WarningStatus(**found.model_dump()) for found in odd), *told]
    warnings = _warnings(job)
    if status.evaluation and (skipped := status.evaluation.skipped):
        # What the trainer has found, which knows the rows.
        warnings.append(("EvaluationSkipped", skipped.reason, skipped.message))
    for kind, reason, message in warnings:
        set_condition(status, kind, "True", reason, message, generation=job.generation, now=now)


def _warnings(job: Job) -> list[tuple[str, str, str]]:
    spec = job.training
    found = []
    if not spec.evaluation.enabled:
        found.append(("EvaluationSkipped", "Disabled", "evaluation.enabled is false"))
    elif spec.dataset.eval is None and spec.dataset.eval_split == 0:
        found.append(("EvaluationSkipped", "NoHeldOutRows", "no dataset.eval, and dataset.evalSplit is 0"))
    if not spec.has_kl_penalty:
        found.append(("KLPenaltyDisabled", "BetaIsZero", "grpo.beta is 0: nothing ties the policy to its base"))
    return found


def _model_name(job: Job) -> str:
    model = job.training.model
    if model.hub:
        return model.hub.repo[:256]
    if model.from_job:
        return f"{model.from_job.kind.lower()}/{model.from_job.name}"[:256]
    assert model.volume is not None, "the schema allows exactly one source"
    return f"{model.volume.claim_name}/{model.volume.path}"[:256]
