"""Evaluations, metrics and checkpoints that a job asks for and would never have. Pure."""

from trl_contract.jobfile import JobFile
from trl_contract.spec import GRPOSpec
from trl_trainer.errors import UserError
from trl_trainer.preflight import steps
from trl_trainer.stage import Stage

LOST = {
    "evaluation": "nothing is evaluated during training",
    "checkpoint": "no checkpoint is published before the last step",
}


def check_metric(job: JobFile, stage: Stage) -> None:
    """Raise UserError if early stopping looks at what the kind's evaluation never has."""
    given = job.spec.evaluation.early_stopping
    if given is None:
        return
    rewards = [reward.name for reward in job.spec.rewards]
    if isinstance(job.spec, GRPOSpec) and job.spec.grpo.reward_aggregation == "geometric_mean":
        rewards.append("geometric_mean")
    known = {"loss", *stage.metrics, *(f"rewards/{name}/{what}" for name in rewards for what in ("mean", "std"))}
    if given.metric not in known:
        raise UserError(
            "InvalidSpec",
            f"evaluation.earlyStopping.metric: {given.metric} is not one of {', '.join(sorted(known))}",
        )


def findings(job: JobFile, stage: Stage, number: int, total: int | None) -> list[str]:
    """Return what a resolved job of `total` steps on `number` training rows asks for in vain."""
    if total is None:
        return []
    counted = (job if stage.pack(job) else steps.by_epochs(job, stage, number)).spec
    found = []
    for name, lost in LOST.items():
        given, every = getattr(job.spec, name), getattr(counted, name).every_steps
        if every is not None and every > total:
            field = f"everySteps {every}" if given.every_epochs is None else f"everyEpochs {given.every_epochs:g}"
            found.append(f"{name}.{field}: the job has {total} steps, so {lost}: lower it")
    stopping, every = counted.evaluation.early_stopping, counted.evaluation.every_steps
    if stopping is not None and every is not None and (times := (total - 1) // every) <= stopping.patience:
        found.append(
            f"evaluation.earlyStopping can never act: patience {stopping.patience} needs {stopping.patience + 1}"
            f" evaluations before the last step, and there are {times}: evaluate more often, or lower patience"
        )
    return found
