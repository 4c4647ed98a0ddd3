"""Earlier jobs whose results a job uses: whether they are there, and where."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from trl_contract.base import Kind
from trl_contract.rewards import RewardFunction, RewardJobRef, RewardModelReward, RewardModelSource
from trl_contract.sources import Volume
from trl_operator.api.job import Job, parse_known
from trl_operator.api.status import ArtifactStatus, JobStatus, UpstreamRef
from trl_operator.api.stored import read_status
from trl_operator.plan.acceptance import Blocker
from trl_operator.plan.bindings import bindings
from trl_operator.plan.observation import Key

Obj = dict[str, Any]


@dataclass(frozen=True)
class Upstream:
    """A job that the spec names: `field` is where."""

    field: str
    kind: Kind
    name: str
    min_accuracy: float | None
    """None: whatever its accuracy."""


def upstreams(job: Job) -> list[Upstream]:
    """Return the jobs whose results the spec names."""
    found = []
    for binding in bindings(job):
        match binding.source:
            case RewardModelReward(from_job=RewardJobRef(name=name)) as model:
                found.append(Upstream(binding.field, "RewardJob", name, model.least_accuracy))
    return found


def check_upstream(upstream: Upstream, obj: Obj | None) -> Blocker | None:
    """Return what stands against using the result of `obj`; None if it is there and good enough."""
    where = f"{upstream.field} names {upstream.kind} {upstream.name}"
    if obj is None:
        return _waits("UpstreamNotFound", f"{where}, which does not exist: create it")
    status = read_status(obj.get("status", {}))
    ended = status.condition("Succeeded")
    if ended is None:
        return _waits("UpstreamNotFinished", f"{where}, which is {status.phase or 'Pending'}")
    if ended.status != "True":
        return _fails("UpstreamFailed", f"{where}, which has ended as {status.phase}: {ended.reason}")
    if (model := _model(status)) is None:
        return _fails("UpstreamFailed", f"{where}, which has left no model")
    try:
        _volume(obj)
    except ValidationError as error:
        # Its pods say what it left, and an older version of the operator may have stored it.
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        left = f"whose model {model.path or model.uri!r:.100} cannot be mounted"
        message = f"{where}, {left}: {field}: {first['msg']}: create that job anew"
        return _fails("UpstreamFailed", message)
    if upstream.min_accuracy is None:
        return None
    accuracy = _accuracy(status)
    if accuracy is None:
        message = f"{where}, whose model was not evaluated: evaluate it, or set acknowledgeUnvalidated"
        return _fails("RewardModelNotValidated", message)
    if accuracy < upstream.min_accuracy:
        message = (
            f"{where}, whose model has accuracy {accuracy:g} on its held-out pairs, below {upstream.min_accuracy:g}"
        )
        return _fails("RewardModelNotValidated", message)
    return None


def with_upstreams(job: Job, found: Mapping[str, Obj]) -> Job:
    """Return `job` with each fromJob replaced by the volume that holds that job's model; `found` is by their names."""
    return _with_volumes(job, {name: _volume(obj) for name, obj in found.items()})


def refs(job: Job, found: Mapping[str, Obj]) -> list[UpstreamRef]:
    """Return which jobs' results `with_upstreams` has used."""
    result = {}
    for upstream in upstreams(job):
        obj = found[upstream.name]
        model = _model(read_status(obj["status"]))
        assert model is not None, "check_upstream has seen it"
        result[upstream.kind, upstream.name] = UpstreamRef(
            kind=upstream.kind, name=upstream.name, uid=obj["metadata"]["uid"], digest=model.digest
        )
    return list(result.values())


def as_pinned(job: Job, file: str) -> Job:
    """Return `job` with each fromJob replaced as the job file of its run, which may be of another version, says."""
    if not upstreams(job):
        return job
    rewards = {reward["name"]: reward for reward in json.loads(file)["spec"]["grpo"]["rewards"]}
    volumes = {}
    for reward in job.training.rewards:
        if reward.reward_model and reward.reward_model.from_job:
            place = rewards[reward.name]["rewardModel"]["source"]["volume"]
            volumes[reward.reward_model.from_job.name] = Volume(claim_name=place["claimName"], path=place["path"])
    return _with_volumes(job, volumes)


def used(obj: Obj) -> tuple[Key, ...]:
    """Return the keys of the jobs that a stored job names, whatever else is in its spec."""
    rewards = obj.get("spec", {}).get("grpo", {}).get("rewards", ())
    names = [reward.get("rewardModel", {}).get("fromJob", {}).get("name") for reward in rewards]
    return tuple(("RewardJob", obj["metadata"]["namespace"], name) for name in names if name)


def _with_volumes(job: Job, volumes: Mapping[str, Volume]) -> Job:
    if not upstreams(job):
        return job
    rewards = [_with_volume(reward, volumes) for reward in job.training.rewards]
    return replace(job, training=job.training.with_rewards(rewards))


def _with_volume(reward: RewardFunction, volumes: Mapping[str, Volume]) -> RewardFunction:
    model = reward.reward_model
    if model is None or model.from_job is None:
        return reward
    source = RewardModelSource(volume=volumes[model.from_job.name])
    return reward.model_copy(update={"reward_model": RewardModelReward(source=source)})


def _volume(obj: Obj) -> Volume:
    """Return where the model of a stored job is; raises ValidationError if it cannot be used."""
    model = _model(read_status(obj["status"]))
    assert model is not None, "check_upstream has seen it"
    if model.path is not None:
        return Volume.model_validate({"claimName": model.claim_name, "path": model.path})
    upstream, _ = parse_known(obj)
    place = PurePosixPath(upstream.cluster.storage.sub_path or ".") / str(model.uri)
    return Volume(claim_name=upstream.storage_claim, path=str(place))


def _model(status: JobStatus) -> ArtifactStatus | None:
    return next((artifact for artifact in status.artifacts if artifact.type == "model"), None)


def _accuracy(status: JobStatus) -> float | None:
    after = status.evaluation.after if status.evaluation else []
    return next((float(metric.value) for metric in after if metric.name == "accuracy"), None)


def _waits(reason: str, message: str) -> Blocker:
    return Blocker(reason, message, condition="UpstreamReady")


def _fails(reason: str, message: str) -> Blocker:
    return Blocker(reason, message, condition="UpstreamReady", fails=True)
