"""The one walk over a spec: all that its pods mount or take whole, where it is named, and what for. Earlier jobs are
trl_contract.upstreams; the hub's repositories and Secrets by key are trl_contract.acceptance."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from trl_contract.acceptance import sources
from trl_contract.cluster import Storage
from trl_contract.pod import CABundle, EnvFrom, Pod
from trl_contract.podvolumes import PodVolume
from trl_contract.rewards import RewardFunction
from trl_contract.sources import ConfigMapKey, DataSource, ModelSource, Volume
from trl_operator.api.job import Job

Rows = list[dict[str, Any]]
Role = Literal["model", "reference_model", "train", "mixture", "eval", "reward", "resume_from", "storage", "pod"]
Source = Volume | ConfigMapKey | Rows | Storage | PodVolume | CABundle | EnvFrom


@dataclass(frozen=True)
class Binding:
    """`source` is what the spec names in `field`: a claim, a key of a ConfigMap, rows that the spec holds itself, the
    claim that the job writes to, or what its pods mount and take variables from."""

    field: str
    role: Role
    source: Source
    name: str = ""
    """Of the reward, or index of the source of the mixture, where `role` says so."""


def bindings(job: Job) -> list[Binding]:
    """Return all that the spec names, in the order of its sections."""
    spec, storage = job.training, job.cluster.storage
    found = [binding for named in sources(spec) for binding in _source(*named)]
    for index, reward in enumerate(spec.rewards):
        found += _reward(f"grpo.rewards[{index}]", reward)
    if spec.checkpoint.resume_from and spec.checkpoint.resume_from.volume:
        found.append(Binding("checkpoint.resumeFrom.volume", "resume_from", spec.checkpoint.resume_from.volume))
    if storage.claim_name:
        found.append(Binding("storage.claimName", "storage", storage))
    return [*found, *_pod(job.cluster.pod or Pod())]


def _pod(pod: Pod) -> Iterator[Binding]:
    if pod.ca_bundle:
        yield Binding("pod.caBundle", "pod", pod.ca_bundle)
    for index, source in enumerate(pod.env_from or ()):
        yield Binding(f"pod.envFrom[{index}]", "pod", source)
    for index, volume in enumerate(pod.volumes or ()):
        yield Binding(f"pod.volumes[{index}]", "pod", volume)


def _source(role: Role, field: str, source: ModelSource | DataSource, name: str) -> list[Binding]:
    named: dict[str, Source | None] = {"volume": source.volume}
    if isinstance(source, DataSource):
        named |= {"configMap": source.config_map, "inline": source.inline}
    return [Binding(f"{field}.{kind}", role, given, name) for kind, given in named.items() if given]


def _reward(field: str, reward: RewardFunction) -> list[Binding]:
    model = reward.reward_model
    named: dict[str, Source | None] = {
        "python.configMap": reward.python.config_map if reward.python else None,
        "rewardModel.source.volume": model.source.volume if model and model.source else None,
    }
    return [Binding(f"{field}.{name}", "reward", given, reward.name) for name, given in named.items() if given]
