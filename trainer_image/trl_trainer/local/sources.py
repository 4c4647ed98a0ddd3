"""Finds on this machine what a spec names, and says by its content which job it is."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trl_contract
import trl_trainer
from trl_contract.jobfile import Paths
from trl_contract.rewards import RewardFunction
from trl_contract.sources import ConfigMapKey, DataSource, ModelSource, Volume
from trl_contract.training import ResumeFrom
from trl_contract.upstreams import Place, Upstream, upstreams
from trl_trainer.errors import UserError
from trl_trainer.local.resource import Key, Resource

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}
LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers")


@dataclass(frozen=True)
class Places:
    """Where the user keeps on this machine what the cluster keeps in claims and ConfigMaps."""

    storage: Path | None = None
    volumes: Mapping[str, Path] = field(default_factory=dict)
    config_maps: Mapping[str, Path] = field(default_factory=dict)
    results: Mapping[Key, Path | None] = field(default_factory=dict)
    """The models that other jobs have left, by these; None: it will be there. Of others the newest in the storage."""


@dataclass(frozen=True)
class Content:
    """A file that is not there yet: its path below the job's folder, and what is in it."""

    path: Path
    content: bytes


Source = Path | Content
"""A file or folder that is there, or a file to be written."""


@dataclass(frozen=True)
class Sources:
    """What each field of Paths stands for."""

    fields: dict[str, Source]
    rewards: dict[str, Source]
    mixture: dict[str, Source]

    def write(self, storage: Path, work: Path) -> Paths:
        """Return the paths of a job in `work`, after writing what is to be written there."""
        rewards, mixture, fields = (
            {name: _written(source, work) for name, source in found.items()}
            for found in (self.rewards, self.mixture, self.fields)
        )
        return Paths.model_validate({"storage": str(storage), "rewards": rewards, "mixture": mixture, **fields})

    def digests(self) -> list[dict[str, str]]:
        """Return what the content of each is known by."""
        return [
            {name: _known(name, source) for name, source in found.items()}
            for found in (self.fields, self.rewards, self.mixture)
        ]


def storage_folder(resource: Resource, places: Places) -> Path:
    """Return the folder in which the job makes its own: as given, else that of its claim, else the current one."""
    if places.storage is not None:
        return places.storage
    storage = resource.cluster.storage
    if storage.claim_name is not None and storage.claim_name in places.volumes:
        return places.volumes[storage.claim_name] / (storage.sub_path or ".")
    return Path()


def find(resource: Resource, places: Places) -> Sources:
    """Return all that the spec names; UserError with a line for each that is not there."""
    spec, finder = resource.training, _Finder(resource, places)
    fields = {
        "model": finder.model(spec.model, ("model", ""), "model"),
        "reference_model": finder.model(spec.explicit_reference, ("reference_model", ""), "dpo.referenceModel.source"),
        "resume_from": finder.earlier(spec.checkpoint.resume_from),
        "train": finder.rows(spec.dataset.train, "train", "dataset.train"),
        "eval": finder.rows(spec.dataset.eval, "eval", "dataset.eval"),
    }
    mixture = {
        str(i): finder.rows(source, f"mixture-{i}", f"dataset.mixture[{i}]")
        for i, source in enumerate(spec.dataset.mixture or [])
    }
    rewards = {reward.name: finder.reward(reward, f"grpo.rewards[{i}]") for i, reward in enumerate(spec.rewards)}
    if finder.missing:
        raise UserError("InvalidSpec", "\n".join(f"spec.{line}" for line in finder.missing))
    return Sources(_there(fields), _there(rewards), _there(mixture))


def code() -> str:
    """Return a digest of the trainer's code and of the versions of the libraries under it."""
    sha = hashlib.sha256()
    for package in (trl_contract, trl_trainer):
        assert package.__file__ is not None, "a package of files"
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            sha.update(path.read_bytes())
    sha.update(json.dumps([version(name) for name in LIBRARIES]).encode())
    return sha.hexdigest()


def _there(found: dict[str, Source | None]) -> dict[str, Source]:
    return {name: source for name, source in found.items() if source is not None}


class _Finder:
    """Finds what the spec names, and gathers what is not there."""

    def __init__(self, resource: Resource, places: Places) -> None:
        self.missing: list[str] = []
        self._resource = resource
        self._places = places
        self._upstreams = {upstream.place: upstream for upstream in upstreams(resource.training)}

    def model(self, source: ModelSource | None, place: Place, field: str) -> Source | None:
        if place in self._upstreams:
            return self._result(self._upstreams[place])
        return None if source is None or source.volume is None else self._place(source.volume, f"{field}.volume")

    def rows(self, source: DataSource | None, name: str, field: str) -> Source | None:
        if source is None or source.hub is not None:
            return None
        if source.inline is not None:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in source.inline)
            return Content(Path(f"{name}.jsonl"), lines.encode())
        if source.volume is not None:
            return self._place(source.volume, f"{field}.volume")
        assert source.config_map is not None, "the schema allows exactly one source"
        return self._place(source.config_map, f"{field}.configMap")

    def reward(self, reward: RewardFunction, field: str) -> Source | None:
        """Return a reward's file or folder; None if it has none."""
        if reward.python is not None:
            return self._place(reward.python.config_map, f"{field}.python.configMap")
        if reward.reward_model is None:
            return None
        if (given := reward.reward_model.source) is not None:
            return self._place(given.volume, f"{field}.rewardModel.source.volume") if given.volume else None
        return self._result(self._upstreams["reward", reward.name])

    def _result(self, upstream: Upstream) -> Source | None:
        """Return the model that a job has left: as told, or the newest that `run` has made of it in the same
        storage."""
        key = (upstream.kind, self._resource.namespace, upstream.name)
        model = self._places.results[key] if key in self._places.results else self._newest(upstream)
        if model is None:
            return None
        least, accuracy = upstream.least_accuracy, _accuracy(model.parent / "metrics.jsonl")
        if least is not None and (accuracy is None or accuracy < least):
            return self._is_missing(
                f"{upstream.field.removesuffix('fromJob')}minAccuracy: {model} has accuracy {accuracy} on its held-out"
                f" pairs, wanted is {least:g}: train a better one, lower it, or set acknowledgeUnvalidated"
            )
        return model

    def _newest(self, upstream: Upstream) -> Path | None:
        storage = storage_folder(self._resource, self._places).absolute()
        made = [
            path.parent
            for path in storage.glob(f"{upstream.name}-{'[0-9a-f]' * 8}/final/resolved.json")
            if json.loads(path.read_text())["kind"] == upstream.kind
        ]
        if not made:
            remedy = "run its file first, with the same --storage, or the folder with both files"
            self._is_missing(f"{upstream.field}: {upstream.job} has no model in {storage}: {remedy}")
        return max(made, key=lambda path: path.stat().st_mtime, default=None)

    def earlier(self, asked: ResumeFrom | None) -> Path | None:
        """Return the folder of the job to go on from: the newest that `run` has made of it in the same storage."""
        if asked is None:
            return None
        upstream = self._upstreams.get(("resume_from", ""))
        if upstream is None:
            assert asked.volume is not None, "the schema allows exactly one of job, volume"
            found = self._place(asked.volume, "checkpoint.resumeFrom.volume")
            return found if isinstance(found, Path) else None
        if upstream.name == self._resource.name:
            self._is_missing(f"{upstream.field}: names this very job: give the new one another name")
            return None
        key = (upstream.kind, self._resource.namespace, upstream.name)
        if key in self._places.results:
            model = self._places.results[key]
            return None if model is None else model.parent
        storage = storage_folder(self._resource, self._places).absolute()
        made = [path.parent for path in storage.glob(f"{upstream.name}-{'[0-9a-f]' * 8}/resolved.json")]
        made = [
            path
            for path in made
            if any(path.glob("checkpoint-*/MANIFEST.json"))
            and json.loads((path / "resolved.json").read_text())["kind"] == upstream.kind
        ]
        if not made:
            self._is_missing(f"{upstream.field}: {upstream.job} has no checkpoint in {storage}: run its file first")
        return max(made, key=lambda path: path.stat().st_mtime, default=None)

    def _place(self, source: Volume | ConfigMapKey, field: str) -> Source | None:
        if isinstance(source, Volume):
            folder = self._places.volumes.get(source.claim_name)
            if folder is None:
                wanted = f"say where claim {source.claim_name} is on this machine"
                return self._is_missing(f"{field}: {wanted}: --volume {source.claim_name}=DIR")
            return self._existing(folder / source.path, f"{field}: claim {source.claim_name}")
        if source.name in self._places.config_maps:
            folder = self._places.config_maps[source.name]
            return self._existing(folder / source.key, f"{field}: ConfigMap {source.name}")
        return self._content(source, field)

    def _content(self, source: ConfigMapKey, field: str) -> Source | None:
        data = self._resource.config_maps.get(source.name)
        if data is None:
            remedy = f"add it, or say where its keys are as files: --config-map {source.name}=DIR"
            return self._is_missing(f"{field}: ConfigMap {source.name} is not in the file: {remedy}")
        if source.key not in data:
            keys = ", ".join(data) or "none"
            return self._is_missing(f"{field}: ConfigMap {source.name} has no key {source.key}; it has {keys}")
        return Content(Path(source.name) / source.key, data[source.key])

    def _existing(self, path: Path, what: str) -> Source | None:
        return path.resolve() if path.exists() else self._is_missing(f"{what}: {path} does not exist")

    def _is_missing(self, line: str) -> Source | None:
        self.missing.append(line)
        return None


def _accuracy(metrics: Path) -> float | None:
    """Return the accuracy of the last evaluation; None without one."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    found = [float(entry["eval_accuracy"]) for entry in map(json.loads, lines) if "eval_accuracy" in entry]
    return found[-1] if found else None


def _written(source: Source, work: Path) -> str:
    """Return the path of a source, written unless it is there already: rows whose file is untouched need not be read
    again."""
    if isinstance(source, Path):
        return str(source)
    path = work / "sources" / source.path
    if not path.exists() or path.read_bytes() != source.content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.content)
    return str(path)


def _known(name: str, source: Source) -> str:
    """Return what a source is known by; an earlier job, whose checkpoints take minutes to read, by what it was."""
    if name == "resume_from" and isinstance(source, Path):
        return _digest(source / "resolved.json")
    return _digest(source)


def _digest(source: Source) -> str:
    sha = hashlib.sha256()
    if isinstance(source, Content):
        sha.update(source.content)
    else:
        for part in _parts(source):
            sha.update(part)
    return sha.hexdigest()


def _parts(path: Path) -> Iterator[bytes]:
    """Yield what a file or a folder is known by: content; of weights, which take minutes to read, size and time."""
    files = [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file())
    for file in files:
        yield str(file.relative_to(path)).encode()
        if path != file and file.suffix in WEIGHTS:
            known: tuple[Any, ...] = (file.stat().st_size, file.stat().st_mtime_ns)
            yield str(known).encode()
            continue
        with file.open("rb") as opened:
            yield hashlib.file_digest(opened, "sha256").digest()
