"""Profiles: named values for what a job does not say itself.

They are put into a spec as if the user had written them, before any rule is tried, and stay what they were when the run
is pinned.
"""

from copy import deepcopy
from typing import Any, get_args

from trl_contract.base import Kind
from trl_contract.spec import SPECS, Profile

Spec = dict[str, Any]
"""A spec in its JSON form, perhaps a wrong one."""

PROFILES: tuple[Profile, ...] = get_args(Profile)

_RATES: dict[Profile, float] = {"conservative": 0.5, "balanced": 1.0, "aggressive": 2.0}
"""What the kind's default learning rate is multiplied with."""

_ALL_KINDS: dict[Profile, Spec] = {
    "smoke": {
        "dataset.maxExamples": 256,
        "training.maxSteps": 4,
        "training.perDeviceBatchSize": 2,
        "training.gradientAccumulationSteps": 2,
        "training.maxLength": 256,
        "training.loggingSteps": 1,
        "evaluation.maxExamples": 8,
    },
    "conservative": {
        "training.gradientAccumulationSteps": 8,
        "training.warmupRatio": 0.2,
        "training.maxGradNorm": 0.5,
    },
    "balanced": {
        "training.gradientAccumulationSteps": 4,
        "training.warmupRatio": 0.1,
        "training.maxGradNorm": 1.0,
    },
    "aggressive": {
        "training.gradientAccumulationSteps": 2,
        "training.warmupRatio": 0.05,
        "training.maxGradNorm": 1.0,
    },
}

_OWN: dict[tuple[Kind, Profile], Spec] = {
    ("DPOJob", "conservative"): {"dpo.beta": 0.2},
    ("DPOJob", "balanced"): {"dpo.beta": 0.1},
    ("DPOJob", "aggressive"): {"dpo.beta": 0.05},
    ("GRPOJob", "smoke"): {"grpo.numGenerations": 2, "grpo.generation.maxCompletionLength": 32},
    # Multiples of gradientAccumulationSteps that go into any number of processes.
    ("GRPOJob", "conservative"): {"grpo.beta": 0.02, "grpo.numGenerations": 32},
    ("GRPOJob", "balanced"): {"grpo.beta": 0.01, "grpo.numGenerations": 16},
    ("GRPOJob", "aggressive"): {"grpo.beta": 0.005, "grpo.numGenerations": 8},
}

_INSTEAD = {
    "dataset.maxExamples": ("dataset.mixture",),
    "training.maxSteps": ("training.epochs",),
    "training.warmupRatio": ("training.warmupSteps",),
}
"""What a user has said the same by, in other words."""

GROUPS = (
    "training.perDeviceBatchSize",
    "training.gradientAccumulationSteps",
    "grpo.numGenerations",
    "grpo.stepsPerGeneration",
    "evaluation.perDeviceBatchSize",
)
"""Sizes of a GRPOJob that have to go into one another. Those of a profile do so among themselves only: whoever says one
of them has the defaults for the others, as without a profile."""


def values(kind: Kind, profile: Profile, *, adapter: bool) -> Spec:
    """Return what a profile says for a kind, by field; `adapter`: not all weights are trained."""
    found = {**_ALL_KINDS[profile], **_OWN.get((kind, profile), {})}
    if kind == "GRPOJob":
        found.pop("training.maxLength", None)
    if profile in _RATES:
        found["training.learningRate"] = _RATES[profile] * SPECS[kind].learning_rates[adapter]
    return found


def fill(kind: Kind, spec: Spec) -> tuple[Spec, list[str]]:
    """Return the spec with what its profile says where the user has said nothing, and which fields these are.

    What is no spec stays as it is, for its models to refuse.
    """
    profile = spec.get("profile")
    if profile not in PROFILES:
        return spec, []
    filled, fields = deepcopy(spec), []
    adapter = _at(spec, "peft.method") != "none"
    for field, value in values(kind, profile, adapter=adapter).items():
        *sections, name = field.split(".")
        place = filled
        for section in sections:
            place = place.setdefault(section, {}) if isinstance(place, dict) else place
        if isinstance(place, dict) and not _is_said(kind, spec, field):
            place[name] = value
            fields.append(field)
    return filled, fields


def _is_said(kind: Kind, spec: Spec, field: str) -> bool:
    if field == "training.warmupRatio" and _at(spec, "training.lrScheduler") == "constant":
        return True  # it has no warm-up
    if field == "grpo.generation.maxCompletionLength" and _has_soft_overlong(spec):
        return True  # its cache is made for the user's length
    same = GROUPS if kind == "GRPOJob" and field in GROUPS else (field, *_INSTEAD.get(field, ()))
    return any(_at(spec, name) is not None for name in same)


def _has_soft_overlong(spec: Spec) -> bool:
    rewards = _at(spec, "grpo.rewards")
    return isinstance(rewards, list) and any(_at(reward, "softOverlong") is not None for reward in rewards)


def _at(spec: Any, field: str) -> Any:
    for name in field.split("."):
        spec = spec.get(name) if isinstance(spec, dict) else None
    return spec
