"""The earlier jobs whose results a spec uses: which, where it names them, and what for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trl_contract import acceptance
from trl_contract.base import Kind
from trl_contract.rewards import RewardFunction, RewardModelReward, RewardModelSource
from trl_contract.sources import ModelSource, Volume
from trl_contract.spec import SPECS, TrainingSpec

Place = tuple[Literal["resume_from", "model", "reference_model", "reward"], str]
"""What a result is used for; of a reward its name beside it, else nothing. For resume_from it is checkpoints, which a
job that failed or was cancelled has left, too; else a model."""


@dataclass(frozen=True)
class Upstream:
    """An earlier job that a spec names in `field`, like model.fromJob."""

    place: Place
    field: str
    kind: Kind
    name: str
    least_accuracy: float | None = None
    """What its model must have reached on held-out rows; None: whatever it has."""

    @property
    def job(self) -> str:
        """How messages name it."""
        return f"{self.kind} {self.name}"

    @property
    def field_of_volume(self) -> str:
        """The field that `with_volumes` puts the volume of its result into."""
        volume = "source.volume" if self.place[0] == "reward" else "volume"
        return self.field.removesuffix("fromJob").removesuffix("job") + volume


def upstreams(spec: TrainingSpec) -> list[Upstream]:
    """Return the earlier jobs that the spec names, in the order of its sections; one may be there more than once."""
    found, earlier = [], spec.checkpoint.resume_from
    if earlier and earlier.job:
        kind = next(kind for kind, known in SPECS.items() if type(spec) is known)
        found.append(Upstream(("resume_from", ""), "checkpoint.resumeFrom.job", kind, earlier.job))
    for role, field, source, _ in acceptance.sources(spec):
        if isinstance(source, ModelSource) and source.from_job and role in ("model", "reference_model"):
            found.append(Upstream((role, ""), f"{field}.fromJob", source.from_job.kind, source.from_job.name))
    for index, reward in enumerate(spec.rewards):
        if (model := reward.reward_model) and model.from_job:
            field = f"grpo.rewards[{index}].rewardModel.fromJob"
            found.append(
                Upstream(("reward", reward.name), field, "RewardJob", model.from_job.name, model.least_accuracy)
            )
    return found


def with_volumes(spec: TrainingSpec, volumes: Mapping[Place, Volume]) -> TrainingSpec:
    """Return the spec with the volumes that hold the results in place of the names of their jobs."""
    if volume := volumes.get(("resume_from", "")):
        spec = spec.model_copy(update={"checkpoint": spec.checkpoint.resuming(volume)})
    if volume := volumes.get(("model", "")):
        spec = spec.model_copy(update={"model": spec.model.in_volume(volume)})
    if (volume := volumes.get(("reference_model", ""))) and spec.explicit_reference:
        spec = spec.with_reference(spec.explicit_reference.in_volume(volume))
    rewards = {name: volume for (role, name), volume in volumes.items() if role == "reward"}
    return spec.with_rewards([_with_volume(reward, rewards) for reward in spec.rewards]) if rewards else spec


def _with_volume(reward: RewardFunction, volumes: Mapping[str, Volume]) -> RewardFunction:
    if reward.name not in volumes:
        return reward
    source = RewardModelSource(volume=volumes[reward.name])
    return reward.model_copy(update={"reward_model": RewardModelReward(source=source)})
