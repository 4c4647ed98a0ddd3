"""The four kinds: their names, their specs and what `kubectl get` prints of them."""

from dataclasses import dataclass

from trl_contract.base import Kind
from trl_contract.jobs import DPOJobSpec, GRPOJobSpec, JobSpec, RewardJobSpec, SFTJobSpec
from trl_contract.spec import DPOSpec, GRPOSpec, RewardSpec, SFTSpec, TrainingSpec


@dataclass(frozen=True)
class Column:
    """A printer column; priority 1 shows with -o wide only."""

    name: str
    json_path: str
    type: str = "string"
    priority: int = 0
    metric: str = ""
    """The metric that it prints, if it does."""


@dataclass(frozen=True)
class KindInfo:
    """What differs between the kinds."""

    kind: Kind
    plural: str
    short_names: tuple[str, ...]
    suffix: str
    """Part of the names of children: `<name>-<suffix>-<attempt>`."""
    spec: type[JobSpec]
    training: type[TrainingSpec]
    columns: tuple[Column, ...]

    @property
    def singular(self) -> str:
        return self.kind.lower()


def _metric(name: str, metric: str, priority: int = 0) -> Column:
    # An operator of before has written the value alone.
    path = f""".status.progress.metrics[?(@.name=="{metric}")]['display','value']"""
    return Column(name, path, priority=priority, metric=metric)


def _of_either(field: str) -> str:
    """Why it does not run, or why it has failed: there is at most one of them."""
    return f".status['waiting.{field}','failure.{field}']"


_LOSS = Column("LOSS", ".status.progress.loss")
_WIDE_LOSS = Column("LOSS", ".status.progress.loss", priority=1)


def _columns(narrow: tuple[Column, ...], wide: tuple[Column, ...]) -> tuple[Column, ...]:
    return (
        Column("PHASE", ".status.phase"),
        Column("STEP", ".status.progress.display"),
        *narrow,
        Column("ETA", ".status.progress.eta"),
        Column("RESTARTS", ".status.restarts", "integer"),
        Column("AGE", ".metadata.creationTimestamp", "date"),
        *wide,
        Column("DURATION", ".status.took", priority=1),
        Column("GPU-HOURS", ".status.usage.gpuHours", priority=1),
        Column("TOK/S", ".status.progress.tokensPerSecond", priority=1),
        Column("NODES", ".spec.numNodes", "integer", 1),
        Column("MODEL", ".status.effective.model", priority=1),
        Column("CHANGE", ".status.evaluation.display", priority=1),
        Column("REASON", _of_either("reason"), priority=1),
        Column("MESSAGE", _of_either("message"), priority=1),
    )


KINDS: dict[Kind, KindInfo] = {
    "SFTJob": KindInfo("SFTJob", "sftjobs", ("sft",), "sft", SFTJobSpec, SFTSpec, _columns((_LOSS,), ())),
    "RewardJob": KindInfo(
        "RewardJob",
        "rewardjobs",
        (),
        "rm",
        RewardJobSpec,
        RewardSpec,
        _columns((_LOSS, _metric("ACCURACY", "accuracy")), ()),
    ),
    "DPOJob": KindInfo(
        "DPOJob",
        "dpojobs",
        ("dpo",),
        "dpo",
        DPOJobSpec,
        DPOSpec,
        _columns(
            (_LOSS, _metric("MARGIN", "rewards/margins")),
            (_metric("ACCURACY", "rewards/accuracies", 1),),
        ),
    ),
    "GRPOJob": KindInfo(
        "GRPOJob",
        "grpojobs",
        ("grpo",),
        "grpo",
        GRPOJobSpec,
        GRPOSpec,
        _columns((_metric("REWARD", "reward"), _metric("KL", "kl")), (_WIDE_LOSS,)),
    ),
}
PRINTED = frozenset(column.metric for info in KINDS.values() for column in info.columns if column.metric)
"""Metrics that `kubectl get` prints of some kind, by TRL's names."""
BY_PLURAL: dict[str, KindInfo] = {info.plural: info for info in KINDS.values()}
