"""What an attempt mounts, and where the trainer finds it."""

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from trl_contract.jobfile import Paths
from trl_contract.pod import CABundle
from trl_contract.podvolumes import PodVolume
from trl_contract.sources import ConfigMapKey, Volume
from trl_operator.api.job import Job
from trl_operator.plan.bindings import Binding, bindings

ATTEMPT = "/etc/trl"
STORAGE = "/mnt/storage"
TOKEN_FOLDER = "/var/run/secrets/trl"
TOKEN = f"{TOKEN_FOLDER}/token"
TOKEN_SECONDS = 3600
HOME = "/home/trainer"
CA_FOLDER = "/etc/trl-ca"


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
    paths: dict[str, str] = {}
    named: dict[str, dict[str, str]] = {"reward": {}, "mixture": {}}
    for binding in bindings(job):
        if binding.role == "pod":
            _mount(found, binding.source)
            continue
        place = _place(found, binding)
        if place is None:
            continue
        if binding.role in named:
            named[binding.role][binding.name] = place
        else:
            paths[binding.role] = place
    told = [{"configMap": {"name": name}} for name in (job.base_name, job.child_name(attempt))]
    found.add("attempt", {"projected": {"sources": told}}, ATTEMPT, readOnly=True)
    found.add("token", {"projected": {"sources": [_token(job)]}}, TOKEN_FOLDER, readOnly=True)
    found.add("tmp", {"emptyDir": {}}, "/tmp")
    found.add("home", {"emptyDir": {}}, HOME)
    found.add("shm", {"emptyDir": _shared_memory(job)}, "/dev/shm")
    return found, Paths(storage=STORAGE, rewards=named["reward"], mixture=named["mixture"], **paths)


def _mount(found: Mounts, source: Any) -> None:
    """Mount what the spec wants mounted for purposes of its own."""
    if isinstance(source, CABundle):
        items = [{"key": source.key, "path": "ca.crt"}]
        found.add("ca-bundle", {"configMap": {"name": source.name, "items": items}}, CA_FOLDER, readOnly=True)
    if isinstance(source, PodVolume):
        said = source.to_wire()
        path, mount = said.pop("mountPath"), {k: said.pop(k) for k in ("readOnly", "subPath") if k in said}
        if source.persistent_volume_claim:
            found.add_claim(source.persistent_volume_claim.claim_name, path, **mount)
        else:
            found.add(f"pod-{said.pop('name')}", said, path, **mount)


def inline_rows(job: Job) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that the spec itself holds, by the name of their file in the run's ConfigMap."""
    return {_file(binding): binding.source for binding in bindings(job) if isinstance(binding.source, list)}


def _file(binding: Binding) -> str:
    return f"{binding.role}{f'-{binding.name}' if binding.name else ''}.jsonl"


def _place(found: Mounts, binding: Binding) -> str | None:
    """Mount what the trainer reads of a binding and return where it is; None if there is nothing to mount."""
    if isinstance(binding.source, list):
        return f"{ATTEMPT}/{_file(binding)}"
    if not isinstance(binding.source, Volume | ConfigMapKey):
        return None
    if binding.role == "reward":
        return found.add_read_only(binding.source, f"/mnt/rewards/{binding.name}", f"reward-{binding.name}")
    if binding.role == "mixture":
        return found.add_read_only(binding.source, f"/mnt/mixture/{binding.name}", f"mixture-{binding.name}-rows")
    return found.add_read_only(binding.source, f"/mnt/{binding.role.replace('_', '-')}", f"{binding.role}-rows")


def _token(job: Job) -> dict[str, Any]:
    return {
        "serviceAccountToken": {"path": "token", "audience": job.audience, "expirationSeconds": TOKEN_SECONDS},
    }


def _shared_memory(job: Job) -> dict[str, Any]:
    size = job.cluster.shared_memory
    return {"medium": "Memory"} | ({"sizeLimit": size} if size is not None else {})
