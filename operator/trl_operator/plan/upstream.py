"""Earlier jobs whose results a job uses: whether they are there, and where."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from trl_contract import upstreams as contract
from trl_contract.sources import Volume
from trl_contract.upstreams import Place, Upstream, with_volumes
from trl_operator.api.job import Job, parse_known
from trl_operator.api.status import ArtifactStatus, JobStatus, UpstreamRef
from trl_operator.api.stored import read_status
from trl_operator.plan.acceptance import Blocker
from trl_operator.plan.observation import Key

Obj = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What an earlier job has left for this one: where it is, and which it is."""

    volume: Volume
    ref: UpstreamRef


Results = Mapping[Upstream, Result]


def upstreams(job: Job) -> list[Upstream]:
    """Return the jobs whose results the spec names."""
    return contract.upstreams(job.training)


def look(upstream: Upstream, obj: Obj | None) -> Result | Blocker:
    """Return the result of `obj` if it is there and good enough, else what stands against using it."""
    where = f"{upstream.field} names {upstream.job}"
    if obj is None:
        return _waits("UpstreamNotFound", f"{where}, which does not exist: create it")
    status = read_status(obj.get("status", {}))
    ended = status.condition("Succeeded")
    if ended is None:
        return _waits("UpstreamNotFinished", f"{where}, which is {status.phase or 'Pending'}")
    if upstream.place[0] == "resume_from":
        return _checkpoints(upstream, where, obj, status)
    if ended.status != "True":
        return _fails("UpstreamFailed", f"{where}, which has ended as {status.phase}: {ended.reason}")
    if (model := _model(status)) is None:
        return _fails("UpstreamFailed", f"{where}, which has left no model")
    try:
        volume = _volume(obj, model)
    except ValidationError as error:
        # Its pods say what it left, and an older version of the operator may have stored it.
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        left = f"whose model {model.path or model.uri!r:.100} cannot be mounted"
        message = f"{where}, {left}: {field}: {first['msg']}: create that job anew"
        return _fails("UpstreamFailed", message)
    if blocker := _not_validated(upstream, where, status):
        return blocker
    ref = UpstreamRef(kind=upstream.kind, name=upstream.name, uid=obj["metadata"]["uid"], digest=model.digest)
    return Result(volume, ref)


def _checkpoints(upstream: Upstream, where: str, obj: Obj, status: JobStatus) -> Result | Blocker:
    """Return the folder of a job that has ended, however it has, if there are checkpoints in it."""
    if not status.checkpoints:
        remedy = "if its folder holds one, name that in checkpoint.resumeFrom.volume"
        return _fails("UpstreamFailed", f"{where}, which has left no checkpoint: {remedy}")
    try:
        earlier, _ = parse_known(obj)
    except ValidationError:
        return _fails("UpstreamFailed", f"{where}, whose spec cannot be read: name its folder in resumeFrom.volume")
    folder = PurePosixPath(earlier.cluster.storage.sub_path or ".") / earlier.uid
    ref = UpstreamRef(kind=upstream.kind, name=upstream.name, uid=earlier.uid, digest="")
    return Result(Volume(claim_name=earlier.storage_claim, path=str(folder)), ref)


def check_cycle(key: Key, waits_for: Callable[[Key], tuple[Key, ...]]) -> Blocker | None:
    """Return what is wrong with a job that waits for itself, be it by way of others; `waits_for` returns the jobs whose
    results one has yet to get."""
    came_from: dict[Key, Key] = {}
    reached = [key]
    for at in reached:
        for used in waits_for(at):
            if used == key:
                names = [f"{used[0]} {used[2]}"]
                while at != key:
                    names.insert(0, f"{at[0]} {at[2]}")
                    at = came_from[at]
                message = f"fromJob: {key[0]} {key[2]} waits for {', which waits for '.join(names)}"
                return Blocker("UpstreamCycle", f"{message}: delete one of them, and create it with another source")
            if used not in came_from:
                came_from[used] = at
                reached.append(used)
    return None


def with_results(job: Job, results: Results) -> Job:
    """Return `job` with each fromJob replaced by the volume that holds that job's result."""
    return _with_volumes(job, {upstream.place: result.volume for upstream, result in results.items()})


def refs(results: Results) -> list[UpstreamRef]:
    """Return which jobs' results these are, each job once."""
    # One that has left both checkpoints and a model is known by its model, the last of both.
    ordered = sorted(results.values(), key=lambda result: result.ref.digest != "")
    return list({result.ref.uid: result.ref for result in ordered}.values())


def as_pinned(job: Job, file: str) -> Job:
    """Return `job` with each fromJob replaced as the job file of its run, which may be of another version, says."""
    named = upstreams(job)
    if not named:
        return job
    volumes, found = {}, dict(_stored(json.loads(file)["spec"]))
    for upstream in named:
        source = found[upstream.place]
        place = source.get("source", source)["volume"]
        volumes[upstream.place] = Volume(claim_name=place["claimName"], path=place["path"])
    return _with_volumes(job, volumes)


def used(obj: Obj) -> tuple[Key, ...]:
    """Return the keys of the jobs that a stored job names, whatever else is in its spec."""
    namespace, found = obj["metadata"]["namespace"], []
    for place, source in _stored(obj.get("spec", {})):
        if place[0] == "resume_from" and "job" in source:
            found.append((obj["kind"], namespace, source["job"]))
        if ref := source.get("fromJob"):
            found.append((ref.get("kind", "RewardJob"), namespace, ref["name"]))
    return tuple(found)


def _stored(spec: Obj) -> Iterator[tuple[Place, Obj]]:
    """Yield the places of a stored spec, of whatever version, that may name a job."""
    yield ("resume_from", ""), spec.get("checkpoint", {}).get("resumeFrom", {})
    yield ("model", ""), spec.get("model", {})
    yield ("reference_model", ""), spec.get("dpo", {}).get("referenceModel", {}).get("source", {})
    for reward in spec.get("grpo", {}).get("rewards", ()):
        yield ("reward", reward["name"]), reward.get("rewardModel", {})


def _with_volumes(job: Job, volumes: Mapping[Place, Volume]) -> Job:
    if not volumes:
        return job
    return replace(job, training=with_volumes(job.training, volumes), builds_on=tuple(upstreams(job)))


def _volume(obj: Obj, model: ArtifactStatus) -> Volume:
    """Return where the model of a stored job is; raises ValidationError if it cannot be used."""
    if model.path is not None:
        return Volume.model_validate({"claimName": model.claim_name, "path": model.path})
    upstream, _ = parse_known(obj)
    place = PurePosixPath(upstream.cluster.storage.sub_path or ".") / str(model.uri)
    return Volume(claim_name=upstream.storage_claim, path=str(place))


def _model(status: JobStatus) -> ArtifactStatus | None:
    return next((artifact for artifact in status.artifacts if artifact.type == "model"), None)


def _not_validated(upstream: Upstream, where: str, status: JobStatus) -> Blocker | None:
    """Return why the model is not good enough; None if it is."""
    if upstream.least_accuracy is None:
        return None
    after = status.evaluation.after if status.evaluation else []
    accuracy = next((float(metric.value) for metric in after if metric.name == "accuracy"), None)
    if accuracy is None:
        message = f"{where}, whose model was not evaluated: evaluate it, or set acknowledgeUnvalidated"
        return _fails("RewardModelNotValidated", message)
    if accuracy < upstream.least_accuracy:
        message = (
            f"{where}, whose model has accuracy {accuracy:g} on its held-out pairs, below {upstream.least_accuracy:g}"
        )
        return _fails("RewardModelNotValidated", message)
    return None


def _waits(reason: str, message: str) -> Blocker:
    return Blocker(reason, message, condition="UpstreamReady")


def _fails(reason: str, message: str) -> Blocker:
    return Blocker(reason, message, condition="UpstreamReady", fails=True)
