"""The base model's files and config: found, and checked as far as that goes without weights."""

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from transformers import AutoConfig

from trl_contract.jobfile import JobFile
from trl_contract.rewards import RewardFunction
from trl_contract.sources import HubModel, ModelSource
from trl_trainer.errors import UserError, is_network
from trl_trainer.launch.network import HUB, patiently

WEIGHTS = frozenset({"model.safetensors", "model.safetensors.index.json"})
"""One of these files transformers reads first."""

ODD = (ValueError, KeyError, AttributeError, TypeError, ImportError, StrictDataclassError)
"""What transformers raises for a config that says what it does not know."""


def path(job: JobFile) -> str:
    """Return the folder or the hub repository of the base model; UserError if there is no model there."""
    if job.paths.model is None:
        assert job.spec.model.hub is not None, "a model is on a volume or on the hub"
        return str(job.spec.model.hub.repo)
    return check_folder(job.paths.model, "model")


def explicit_reference(job: JobFile, given: ModelSource) -> str:
    """Return the folder or the hub repository of the explicit reference model; UserError if there is none there."""
    if job.paths.reference_model is None:
        assert given.hub is not None, "a model is on a volume or on the hub"
        return given.hub.repo
    return check_folder(job.paths.reference_model, "dpo.referenceModel.source")


def reward_model(job: JobFile, reward: RewardFunction) -> tuple[str, HubModel | None]:
    """Return the folder of a reward's model, or its repository and what the job says of that."""
    given = reward.reward_model.source if reward.reward_model else None
    if given is None or given.hub is None:
        return job.paths.rewards[reward.name], None
    return given.hub.repo, given.hub


def folder(job: JobFile) -> Path:
    """Return the folder of the base model, also of one of the hub, whose files are here: it has been loaded."""
    where = path(job)
    if job.paths.model is not None:
        return Path(where)
    return Path(snapshot_download(where, revision=job.spec.model.revision, local_files_only=True))


def weights(where: str, revision: str | None) -> Path:
    """Return the folder with the weights of a folder or hub repository; those of a repository are downloaded."""
    if Path(where).is_absolute():
        return Path(where)
    wanted = ["config.json", "generation_config.json", *sorted(WEIGHTS)]
    found = Path(_download(where, revision, wanted))
    index = found / "model.safetensors.index.json"
    if not (found / "model.safetensors").exists():
        wanted = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        _download(where, revision, wanted)
    return found


def _download(repo: str, revision: str | None, names: list[str]) -> str:
    return patiently(HUB, lambda: snapshot_download(repo, revision=revision, allow_patterns=names))


def check_folder(folder: str, field: str) -> str:
    """Return `folder` if it holds a model in safetensors, else raise UserError that names `field`."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    if "config.json" not in names:
        _check_no_adapter(set(names), folder, field)
        raise UserError("ModelNotFound", f"{field}: {folder} has no config.json, so it is no model folder")
    if not WEIGHTS & set(names):
        raise UserError(
            "ModelNotFound", f"{field}: {folder} has no safetensors; convert the weights with save_pretrained"
        )
    return folder


def _check_no_adapter(names: set[str], where: str, field: str) -> None:
    """Raise UserError if the files are those of an adapter alone."""
    if "adapter_config.json" not in names or "config.json" in names:
        return
    raise UserError(
        "ModelNotFound",
        f"{field}: {where} is an adapter, and a base is a whole model: of a job's result give final, which is merged,"
        " not final/adapter; else merge it with peft's AutoPeftModelForCausalLM.from_pretrained(...)"
        ".merge_and_unload().save_pretrained(...), and save the tokenizer there",
    )


def check_hub(repo: str, revision: str | None, field: str) -> list[str] | None:
    """Return the names of the repository's files; None if the hub does not answer, and the cache may have them.

    UserError that names `field` if it is not there, or has only pickled weights: loading them runs foreign code.
    """
    try:
        names = HfApi().list_repo_files(repo, revision=revision)
    except GatedRepoError as error:
        raise UserError("AccessDenied", f"{field}: {repo} is gated: give tokenSecretRef and ask for access") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError("ModelNotFound", f"{field}: {repo} is not on the hub, or is private: {error}") from error
    except Exception as error:
        if not may_pass(error):
            raise
        return None
    _check_no_adapter(set(names), repo, field)
    if not WEIGHTS & set(names):
        raise UserError("ModelNotFound", f"{field}: {repo} has no safetensors, and pickle weights are not loaded")
    return names


def may_pass(error: Exception) -> bool:
    """Return whether an exception of the hub's client says nothing about what was asked for, which may be in the
    cache. Its client raises errors of its own classes, of Python's, and of the one for HTTP that it is built on."""
    return isinstance(error, (HfHubHTTPError, OSError)) or is_network(error)


def read_config(where: str, revision: str | None, field: str) -> Any:
    """Return the transformers config of a folder or hub repository. UserError names `field`."""
    is_folder = Path(where).is_absolute()
    if not is_folder:
        check_hub(where, revision, field)
    try:
        return patiently(HUB, lambda: AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False))
    except (*ODD, OSError) as error:
        if isinstance(error, OSError) and not is_folder:
            raise  # whatever it is, it is not known to be a mistake
        raise UserError("InvalidSpec", f"{field}: the config.json of {where} cannot be read: {error}") from error
