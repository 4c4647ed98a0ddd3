"""Progress reports become the part of the status that belongs to trl-operator-progress."""

from collections.abc import Iterable
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from trl_contract.cautions import REASONS
from trl_contract.report import CheckpointReport, ExitRecord, JobWarning, Metric, Progress, ProgressReport
from trl_operator.api.kinds import PRINTED
from trl_operator.api.reported import EvaluationStatus, short
from trl_operator.api.status import workload
from trl_operator.api.stored import owned
from trl_operator.constants import MANAGER_PROGRESS, MANAGER_STATUS
from trl_operator.plan.observation import parse_time
from trl_operator.status.conditions import Status, clean
from trl_operator.status.size import fit_report

MAX_METRICS = 24
MAX_WARNINGS = 4
MAX_COUNT = 2**31 - 1
DONE = 100
"""Percent; at the end of a job only."""
_NAMED = {"loss": "loss", "learning_rate": "learningRate", "grad_norm": "gradNorm"}


def from_stock(report: ProgressReport, attempt: int) -> Progress:
    """Return the report of a stock transformers script in our terms; its steps travel as metrics."""
    status = report.trainer_status
    values = {metric.name: value for metric in status.metrics if (value := _finite(metric.value)) is not None}
    return Progress(
        attempt=attempt,
        activity="training",
        step=_count(values.get("current_step", 0.0)),
        total_steps=_count(values.get("total_steps", 0.0)),
        epoch=values.get("current_epoch"),
        eta_seconds=status.estimated_remaining_seconds,
        last_update_time=status.last_updated_time,
        metrics=status.metrics[:64],
    )


def is_newer(progress: Progress, current: Status) -> bool:
    """Return whether a report says more than the stored status: it is of a later attempt, or of a later time.

    Steps decide nothing: whoever can forge one report of an attempt would else silence the attempt with a far step.
    """
    known = current.get("progress")
    if known is None:
        return True
    said = (progress.attempt, _when(progress.last_update_time))
    return said > (known["attempt"], _when(known["lastUpdateTime"]))


def not_later_than(now: datetime, progress: Progress) -> Progress:
    """Return the report with a time that is not ahead of ours, so that no clock outruns the reports after it."""
    if _when(progress.last_update_time) <= now:
        return progress
    return progress.model_copy(update={"last_update_time": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")})


def has_valid_times(progress: Progress) -> bool:
    """Return whether the API server would take the report's times: one that it does not take spoils the whole write."""
    times = [progress.last_update_time, *(checkpoint.time for checkpoint in progress.checkpoints)]
    return all(parse_time(time) is not None for time in times)


def last_words(found: Iterable[ExitRecord], attempt: int, succeeded: bool, current: Status) -> Status | None:
    """Return what trl-operator-progress has yet to write of an attempt that ends; None if all has been said.

    The trainer's last report comes after its record was made, and may be written before or after it, or never: what
    is done is at 100 % in any case.
    """
    for record in found:
        if record.progress is None or record.progress.attempt != attempt or not has_valid_times(record.progress):
            continue
        succeeded = succeeded or record.outcome == "Succeeded"
        if is_newer(record.progress, current):
            return progress_fields(record.progress, DONE if succeeded else None, current)
    known = current.get("progress", {})
    if not succeeded or known.get("attempt") != attempt or known.get("percentage") == DONE:
        return None
    return owned(current, MANAGER_PROGRESS) | {"progress": _at_rest(known) | {"percentage": DONE}}


def without_eta(current: Status, after: Status) -> Status | None:
    """Return what trl-operator-progress says of a job of which, by its next status, no attempt runs: nobody knows when
    it will be done, and nothing is being done. None if it says no more."""
    over = "completionTime" in after or not workload(after)
    known = owned(current, MANAGER_PROGRESS)
    if not over or "progress" not in known:
        return None
    rest = fit_report(known | {"progress": _at_rest(known["progress"])}, after)
    return None if rest == known else rest


def progress_fields(progress: Progress, percentage: int | None, current: Status) -> Status:
    """Return everything that trl-operator-progress writes; what this report does not say is kept from `current`."""
    fields = owned(current, MANAGER_PROGRESS)
    if progress.attempt > current.get("progress", {}).get("attempt", progress.attempt):
        fields.pop("resumedFromStep", None)
    effective = fields.pop("effective", {})
    fields["progress"] = _progress(progress, percentage)
    if progress.checkpoints:
        # Lists in the status have keys: of two with the same one the API server would refuse the whole.
        fields["checkpoints"] = list({c.step: _checkpoint(c) for c in progress.checkpoints}.values())
    if progress.resumed_from_step is not None:
        fields["resumedFromStep"] = progress.resumed_from_step
    if progress.elapsed_seconds is not None:
        fields["usage"] = _usage(progress, progress.elapsed_seconds, fields.get("usage", {}))
    if progress.evaluation:
        found = {"before": _metrics(progress.evaluation.before), "after": _metrics(progress.evaluation.after)}
        known = fields.get("evaluation", {}) | {name: value for name, value in found.items() if value}
        headline = EvaluationStatus.model_validate(known).headline()
        fields["evaluation"] = known | ({"display": headline} if headline else {})
    if progress.evaluation_skipped:
        why = progress.evaluation_skipped
        skipped = {"reason": why.reason, "message": clean(why.message, 1024)}
        fields["evaluation"] = {**fields.get("evaluation", {}), "skipped": skipped}
    if progress.training_warnings:
        # What was told first stays first, and as it was.
        known = {found["reason"]: found for found in fields.get("warnings", ())}
        new = {found.reason: _warning(found) for found in progress.training_warnings if found.reason not in REASONS}
        fields["warnings"] = list((known | new | known).values())[:MAX_WARNINGS]
    if progress.rewards:
        rewards = {
            reward.name: {"name": reward.name, "mean": mean, "std": std, "errors": reward.errors}
            for reward in progress.rewards
            if (mean := decimal(reward.mean)) is not None and (std := decimal(reward.std)) is not None
        }
        fields["rewards"] = list(rewards.values())
    if progress.total_steps:
        effective["totalSteps"] = progress.total_steps
    if progress.trainable_parameters is not None:
        effective["trainableParameters"] = progress.trainable_parameters
    if progress.gradient_checkpointing is not None:
        effective["gradientCheckpointing"] = progress.gradient_checkpointing
    if effective:
        fields["effective"] = effective
    return fit_report(fields, owned(current, MANAGER_STATUS))


def _progress(progress: Progress, percentage: int | None) -> Status:
    metrics = _metrics(progress.metrics)
    values = {metric["name"]: metric["value"] for metric in metrics}
    total = progress.total_steps
    if percentage is None:
        percentage = min(100 * progress.step // total, 99) if total else 0
    done = percentage == DONE
    eta = None if done else progress.eta_seconds
    fields: dict[str, Any] = {
        "attempt": progress.attempt,
        "activity": clean(progress.activity, 63),
        "display": _steps(progress.step, total) if done else _display(progress),
        "eta": duration(eta) if eta is not None else None,
        "etaSeconds": eta,
        "step": progress.step,
        "totalSteps": total,
        "percentage": percentage,
        "epoch": decimal(progress.epoch),
        **{field: _shown(values.get(metric)) for metric, field in _NAMED.items()},
        "tokensPerSecond": _shown(progress.tokens_per_second),
        "lastUpdateTime": progress.last_update_time,
        "metrics": [metric | _display_of(metric) for metric in metrics],
        "warnings": [clean(warning, 300) for warning in progress.warnings],
        "artifacts": _artifacts(progress),
    }
    return {name: value for name, value in fields.items() if value is not None and value != []}


def _usage(progress: Progress, elapsed: int, before: Status) -> Status:
    earlier: int = before.get("earlierSeconds", 0)
    if progress.attempt > before.get("attempt", progress.attempt):
        earlier += before["attemptSeconds"]
    # What a new attempt has trained is known when it has loaded its checkpoint.
    trained = progress.training_seconds if progress.training_seconds is not None else before.get("trainingSeconds", 0)
    total = earlier + elapsed
    hours = _shown(total * progress.gpus / 3600) if progress.gpus else None
    return {
        "attempt": progress.attempt,
        "attemptSeconds": elapsed,
        "earlierSeconds": min(earlier, MAX_COUNT),
        "trainingSeconds": trained,
        "gpus": progress.gpus,
        **({"gpuHours": hours} if hours else {}),
        "goodput": _shown(min(trained / max(total, 1), 1.0)),
    }


def _warning(found: JobWarning) -> Status:
    return {"reason": found.reason, "message": clean(found.message, 300), "hint": clean(found.hint, 300)}


def _artifacts(progress: Progress) -> list[Status]:
    return [
        {"type": found.type, "path": clean(found.uri, 1024), "digest": clean(found.digest, 80)}
        | ({} if found.size is None else {"size": found.size})
        for found in {artifact.type: artifact for artifact in progress.artifacts}.values()
    ]


def _display(progress: Progress) -> str:
    """Return what is being done where that is not training, and how far training is."""
    activity, steps = clean(progress.activity, 30), _steps(progress.step, progress.total_steps)
    if progress.activity_percentage is not None:
        return f"{activity} {progress.activity_percentage} %"
    if progress.activity == "training":
        return steps
    return f"{steps} {activity}" if progress.total_steps else activity


def _display_of(metric: Status) -> Status:
    return {"display": short(float(metric["value"]))} if metric["name"] in PRINTED else {}


def _steps(step: int, total: int) -> str:
    return f"{step}/{total}" if total else str(step)


def _at_rest(known: Status) -> Status:
    """Return the progress of an attempt that does nothing any more."""
    kept = {name: value for name, value in known.items() if name not in ("eta", "etaSeconds")}
    return kept | {"display": _steps(known["step"], known["totalSteps"])} if "display" in known else kept


def _metrics(metrics: list[Metric]) -> list[Status]:
    """Return the metrics that are finite and have a printable name, once each, 24 at most."""
    found: dict[str, str] = {}
    for metric in metrics:
        value = decimal(metric.value)
        if value is not None and metric.name.isprintable():
            found[metric.name] = value
    return [{"name": name, "value": value} for name, value in list(found.items())[:MAX_METRICS]]


def _checkpoint(checkpoint: CheckpointReport) -> Status:
    fields: Status = {"step": checkpoint.step, "path": clean(checkpoint.path, 1024), "time": checkpoint.time}
    metrics = _metrics(checkpoint.metrics)
    return fields | ({"metrics": metrics} if metrics else {})


def decimal(value: float | str | None) -> str | None:
    """Return a number as a decimal string of six significant digits, for programs to compare; None for what is no
    finite number."""
    number = _finite(value)
    return None if number is None else f"{number:.6g}"


def _shown(value: float | str | None) -> str | None:
    """Return a number as people read it; None for what is no finite number."""
    number = _finite(value)
    return None if number is None else short(number)


def _when(text: str) -> datetime:
    return parse_time(text) or datetime.min.replace(tzinfo=UTC)


def _count(value: float) -> int:
    return min(max(int(value), 0), MAX_COUNT)


def _finite(value: float | str | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if isfinite(number) else None


def duration(seconds: int) -> str:
    """Return a time span in its two largest units: 45s, 12m5s, 1h20m, 2d3h."""
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size}{unit}" + (f"{rest}{smaller}" if rest else "")
    return f"{seconds}s"
