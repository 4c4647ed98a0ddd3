"""Turns a resource into a job file for this machine: claims and ConfigMaps become folders, pods become processes."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trl_contract.jobfile import JobFile, Paths
from trl_contract.rewards import RewardFunction
from trl_contract.sources import ConfigMapKey, DataSource, ModelSource, Volume
from trl_trainer.errors import UserError
from trl_trainer.local.resource import Resource

GPU_DEVICES = ("nvidia[0-9]*", "kfd", "dxg")
"""Device files without which no GPU can be used."""


@dataclass(frozen=True)
class Places:
    """Where the user keeps on this machine what the cluster keeps in claims and ConfigMaps."""

    storage: Path | None = None
    volumes: Mapping[str, Path] = field(default_factory=dict)
    config_maps: Mapping[str, Path] = field(default_factory=dict)


def num_gpus(devices: Path = Path("/dev")) -> int:
    """Return the number of GPUs that PyTorch can use here."""
    if not any(any(devices.glob(pattern)) for pattern in GPU_DEVICES):
        # Importing torch to learn this takes seconds.
        return 0
    import torch

    return int(torch.cuda.device_count())


def here(resource: Resource, places: Places, gpus: int) -> JobFile:
    """Return the job file with which `resource` trains on this machine, on all `gpus` or on the CPU.

    Inline rows and ConfigMaps of the same file are written below the job's folder. UserError if a place is missing or
    the machine cannot do what the job asks for.
    """
    job = _job(resource, per_node=gpus or resource.cluster.num_proc_per_node or 1, has_gpus=gpus > 0)
    if resource.training.peft.method == "qlora" and not gpus:
        raise UserError("InvalidSpec", "spec.peft.method: qlora needs a GPU, and this machine has none; use lora")
    _check_groups(job)
    job = job.model_copy(update={"uid": f"{resource.name}-{_digest(job)}"})
    work = (storage_folder(resource, places) / job.uid).resolve()
    return job.model_copy(update={"attempt": _next_attempt(work), "paths": _paths(resource, places, work)})


def as_written(job: JobFile, resource: Resource) -> JobFile:
    """Return `job` (of `here`) with the nodes, processes and GPUs that the resource asks the cluster for."""
    cluster = resource.cluster
    return job.model_copy(
        update={
            "num_nodes": cluster.num_nodes,
            "num_proc_per_node": cluster.processes_per_node,
            "has_gpus": cluster.gpus_per_node > 0,
        }
    )


def _job(resource: Resource, *, per_node: int, has_gpus: bool) -> JobFile:
    policy = resource.cluster.run_policy
    return JobFile(
        kind=resource.kind,
        namespace=resource.namespace,
        name=resource.name,
        uid=resource.name,
        num_proc_per_node=per_node,
        has_gpus=has_gpus,
        stall_timeout_seconds=policy.stall_timeout_seconds,
        termination_grace_period_seconds=policy.termination_grace_period_seconds,
        paths=Paths(storage="."),
        spec=resource.training,
    )


def _check_groups(job: JobFile) -> None:
    """What CEL says of the cluster's processes, for those of this machine."""
    try:
        job.spec.check_world(job.world_size)
    except ValueError as error:
        raise UserError("InvalidSpec", f"spec.{error}") from None


def _digest(job: JobFile) -> str:
    """A changed file is another job with a folder of its own; the same file continues where it was."""
    fields = [job.kind, job.num_proc_per_node, job.has_gpus, job.spec.to_wire()]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


def storage_folder(resource: Resource, places: Places) -> Path:
    """Return the folder in which the job makes its own: as given, else that of its claim, else the current one."""
    if places.storage is not None:
        return places.storage
    storage = resource.cluster.storage
    if storage.claim_name is not None and storage.claim_name in places.volumes:
        return places.volumes[storage.claim_name] / (storage.sub_path or ".")
    return Path()


def _next_attempt(work: Path) -> int:
    taken = [int(name) for name in os.listdir(work / "attempt")] if (work / "attempt").is_dir() else []
    return max(taken, default=-1) + 1


def _paths(resource: Resource, places: Places, work: Path) -> Paths:
    spec = resource.training
    found = _Finder(resource, places, work)
    return Paths(
        storage=str(work.parent),
        model=found.model(spec.model, "model"),
        reference_model=found.model(spec.explicit_reference, "dpo.referenceModel.source"),
        train=found.rows(spec.dataset.train, "train"),
        eval=found.rows(spec.dataset.eval, "eval"),
        rewards={reward.name: place for reward in spec.rewards if (place := found.reward(reward)) is not None},
    )


class _Finder:
    """Finds what the spec names on this machine, and writes down what the file itself holds."""

    def __init__(self, resource: Resource, places: Places, work: Path) -> None:
        self._resource = resource
        self._places = places
        self._storage = work.parent
        self._folder = work / "sources"

    def model(self, source: ModelSource | None, field: str) -> str | None:
        return None if source is None or source.volume is None else self.place(source.volume, field)

    def rows(self, source: DataSource | None, name: str) -> str | None:
        if source is None or source.hub is not None:
            return None
        if source.inline is not None:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in source.inline)
            return str(_write(self._folder / f"{name}.jsonl", lines.encode()))
        place = source.volume or source.config_map
        assert place is not None, "the schema allows exactly one source"
        return self.place(place, f"dataset.{name}")

    def reward(self, reward: RewardFunction) -> str | None:
        """Return where a reward's file or folder is; None if it has none."""
        field = f"grpo.rewards.{reward.name}"
        if reward.python is not None:
            return self.place(reward.python.config_map, field)
        if reward.reward_model is None:
            return None
        if reward.reward_model.source is not None:
            return self.place(reward.reward_model.source.volume, field)
        assert reward.reward_model.from_job is not None, "the schema allows exactly one source"
        least = reward.reward_model.least_accuracy
        return self._result(reward.reward_model.from_job.name, f"spec.{field}.rewardModel", least)

    def _result(self, name: str, field: str, least: float | None) -> str:
        """Return the newest model that `run` has made of the RewardJob of this name, in the same storage; UserError if
        there is none, or it has less than the `least` accuracy on its held-out pairs."""
        made = [path for path in self._storage.glob(f"{name}-{'[0-9a-f]' * 8}/final") if path.is_dir()]
        if not made:
            raise UserError(
                "InvalidSpec",
                f"{field}.fromJob: RewardJob {name} has no model in {self._storage}: run its file first, with the same"
                " --storage",
            )
        newest = max(made, key=lambda path: path.stat().st_mtime)
        accuracy = _accuracy(newest.parent / "metrics.jsonl")
        if least is not None and (accuracy is None or accuracy < least):
            raise UserError(
                "InvalidSpec",
                f"{field}.minAccuracy: {newest} has accuracy {accuracy} on its held-out pairs, wanted is"
                f" {least:g}: train a better one, lower it, or set acknowledgeUnvalidated",
            )
        return str(newest)

    def place(self, source: Volume | ConfigMapKey, field: str) -> str:
        if isinstance(source, Volume):
            folder = self._places.volumes.get(source.claim_name)
            if folder is None:
                raise UserError(
                    "InvalidSpec",
                    f"spec.{field}: say where claim {source.claim_name} is on this machine: --volume"
                    f" {source.claim_name}=DIR",
                )
            return str(_existing(folder / source.path, f"spec.{field}: claim {source.claim_name}"))
        if source.name in self._places.config_maps:
            folder = self._places.config_maps[source.name]
            return str(_existing(folder / source.key, f"spec.{field}: ConfigMap {source.name}"))
        return str(_write(self._folder / source.name / source.key, self._content(source, field)))

    def _content(self, source: ConfigMapKey, field: str) -> bytes:
        data = self._resource.config_maps.get(source.name)
        if data is None:
            raise UserError(
                "InvalidSpec",
                f"spec.{field}: ConfigMap {source.name} is not in the file: add it, or say where its keys are as files:"
                f" --config-map {source.name}=DIR",
            )
        if source.key not in data:
            keys = ", ".join(data) or "none"
            raise UserError(
                "InvalidSpec", f"spec.{field}: ConfigMap {source.name} has no key {source.key}; it has {keys}"
            )
        return data[source.key]


def _accuracy(metrics: Path) -> float | None:
    """Return the accuracy of the last evaluation; None without one."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    found = [float(entry["eval_accuracy"]) for entry in map(json.loads, lines) if "eval_accuracy" in entry]
    return found[-1] if found else None


def _existing(path: Path, what: str) -> Path:
    if not path.exists():
        raise UserError("InvalidSpec", f"{what}: {path} does not exist")
    return path.resolve()


def _write(path: Path, content: bytes) -> Path:
    """Write a file unless it is there already: rows whose file is untouched need not be read again."""
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return path
