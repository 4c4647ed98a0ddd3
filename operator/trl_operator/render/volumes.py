"""What an attempt mounts, and where the trainer finds it. Every source is visited here and nowhere else."""

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from trl_contract.jobfile import Paths
from trl_contract.rewards import RewardFunction
from trl_contract.sources import ConfigMapKey, Dataset, DataSource, ModelSource, Volume
from trl_operator.api.job import Job

ATTEMPT = "/etc/trl"
STORAGE = "/mnt/storage"
TOKEN_FOLDER = "/var/run/secrets/trl"
TOKEN = f"{TOKEN_FOLDER}/token"
TOKEN_SECONDS = 3600
HOME = "/home/trainer"


@dataclass
class Mounts:
    """Volumes and mounts of a pod under construction; a claim that is used twice is one volume."""

    volumes: list[dict[str, Any]] = field(default_factory=list)
    mounts: list[dict[str, Any]] = field(default_factory=list)
    claims: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, source: dict[str, Any], path: str, **mount: Any) -> None:
        self.volumes.append({"name": name, **source})
        self.mounts.append({"name": name, "mountPath": path, **mount})

    def add_claim(self, claim: str, path: str, **mount: Any) -> None:
        if claim not in self.claims:
            self.claims[claim] = f"claim-{len(self.claims)}"
            source = {"persistentVolumeClaim": {"claimName": claim}}
            self.volumes.append({"name": self.claims[claim], **source})
        self.mounts.append({"name": self.claims[claim], "mountPath": path, **mount})

    def add_read_only(self, source: Volume | ConfigMapKey, path: str, name: str) -> str:
        """Mount a source at `path` and return where its file or folder is."""
        if isinstance(source, Volume):
            self.add_claim(source.claim_name, path, readOnly=True)
            return str(PurePosixPath(path) / source.path)
        items = [{"key": source.key, "path": source.key}]
        self.add(name, {"configMap": {"name": source.name, "items": items}}, path, readOnly=True)
        return str(PurePosixPath(path) / source.key)


def mounts(job: Job, attempt: int) -> tuple[Mounts, Paths]:
    """Return what the pods of an attempt mount, and the paths that go with it into the job file."""
    found = Mounts()
    sub_path = job.cluster.storage.sub_path
    found.add_claim(job.storage_claim, STORAGE, **({"subPath": sub_path} if sub_path else {}))
    spec: Any = job.training
    dataset: Dataset = spec.dataset
    rewards = spec.grpo.rewards if job.info.kind == "GRPOJob" else []
    reference = spec.dpo.reference_model.source if job.info.kind == "DPOJob" else None
    paths = Paths(
        storage=STORAGE,
        model=_model(found, spec.model, "/mnt/model"),
        reference_model=_model(found, reference, "/mnt/reference-model"),
        train=_rows(found, dataset.train, "train"),
        eval=_rows(found, dataset.eval, "eval"),
        rewards=_rewards(found, rewards),
    )
    found.add("attempt", {"configMap": {"name": job.child_name(attempt)}}, ATTEMPT, readOnly=True)
    found.add("token", {"projected": {"sources": [_token(job)]}}, TOKEN_FOLDER, readOnly=True)
    found.add("tmp", {"emptyDir": {}}, "/tmp")
    found.add("home", {"emptyDir": {}}, HOME)
    found.add("shm", {"emptyDir": _shared_memory(job)}, "/dev/shm")
    return found, paths


def inline_rows(job: Job) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that the spec itself holds, by the name of their file in the attempt's ConfigMap."""
    dataset: Dataset = getattr(job.training, "dataset")  # noqa: B009
    sources = {"train.jsonl": dataset.train, "eval.jsonl": dataset.eval}
    return {name: source.inline for name, source in sources.items() if source and source.inline}


def _model(found: Mounts, source: ModelSource | None, path: str) -> str | None:
    if source is None or source.volume is None:
        return None
    return found.add_read_only(source.volume, path, "")


def _rows(found: Mounts, source: DataSource | None, name: str) -> str | None:
    if source is None or source.hub:
        return None
    if source.inline:
        return f"{ATTEMPT}/{name}.jsonl"
    place = source.volume or source.config_map
    assert place is not None, "the schema allows exactly one source"
    return found.add_read_only(place, f"/mnt/{name}", f"{name}-rows")


def _rewards(found: Mounts, rewards: list[RewardFunction]) -> dict[str, str]:
    paths = {}
    for reward in rewards:
        source: Volume | ConfigMapKey | None = None
        if reward.python:
            source = reward.python.config_map
        elif reward.reward_model:
            assert reward.reward_model.source is not None, "fromJob was replaced by the volume that it stands for"
            source = reward.reward_model.source.volume
        if source is not None:
            paths[reward.name] = found.add_read_only(source, f"/mnt/rewards/{reward.name}", f"reward-{reward.name}")
    return paths


def _token(job: Job) -> dict[str, Any]:
    return {
        "serviceAccountToken": {"path": "token", "audience": job.audience, "expirationSeconds": TOKEN_SECONDS},
    }


def _shared_memory(job: Job) -> dict[str, Any]:
    size = job.cluster.shared_memory
    return {"medium": "Memory"} | ({"sizeLimit": size} if size is not None else {})
