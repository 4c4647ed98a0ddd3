"""What no schema can say of a spec: how much it may hold, and what it names of the hub."""

import json
from collections.abc import Iterator
from typing import Any, Literal

from trl_contract.rewards import token_variable
from trl_contract.sources import DataSource, HubDataset, HubModel, ModelSource, SecretKeyRef
from trl_contract.spec import TrainingSpec

MAX_INLINE_BYTES = 128 * 1024
MAX_CONFIG_MAP_BYTES = 960 * 1024
"""What a run's ConfigMap may hold of the spec; the API server takes 1 MiB with paths and resolved defaults."""

Role = Literal["model", "reference_model", "train", "mixture", "eval"]
Reason = Literal["InlineTooLarge", "SpecTooLarge"]


def refused(spec: TrainingSpec) -> tuple[Reason, str] | None:
    """Return why no job may have this spec, for machines and, from the field on, for people; None if one may."""
    # The trainer gets the spec with its defaults resolved, and inline rows as a file too.
    total = _size(spec.to_wire())
    for _, field, source, _ in sources(spec):
        if isinstance(source, DataSource) and source.inline:
            size = _size(source.inline)
            total += size
            if size > MAX_INLINE_BYTES:
                remedy = "put the rows into a ConfigMap or a volume"
                return "InlineTooLarge", f"{field}.inline has {size} bytes, at most {MAX_INLINE_BYTES}: {remedy}"
    if total > MAX_CONFIG_MAP_BYTES:
        remedy = "shorten its texts (rewards, templates, prompts), or put inline rows into a ConfigMap or a volume"
        message = f"spec needs {total} bytes in the run's ConfigMap, at most {MAX_CONFIG_MAP_BYTES}: {remedy}"
        return "SpecTooLarge", message
    return None


def hubs(spec: TrainingSpec) -> list[HubModel | HubDataset]:
    """Return the repositories on the hub that the spec names, the model first."""
    models = [reward.reward_model.source for reward in spec.rewards if reward.reward_model]
    found = [*(source.hub for _, _, source, _ in sources(spec)), *(source.hub for source in models if source)]
    return [hub for hub in found if hub]


def hub_tokens(spec: TrainingSpec) -> dict[str, SecretKeyRef]:
    """Return the Secrets with the hub's tokens, by the variables that carry them: HF_TOKEN, which the libraries send
    where nothing else is said, has that of the model or, if it names none, the first."""
    refs = [hub.token_secret_ref for hub in hubs(spec) if hub.token_secret_ref]
    different = [ref for index, ref in enumerate(refs) if ref not in refs[:index]]
    return {f"TRL_HUB_{index}_TOKEN" if index else "HF_TOKEN": ref for index, ref in enumerate(different)}


def secrets(spec: TrainingSpec) -> dict[str, SecretKeyRef]:
    """Return the Secrets that the spec names, by the variable that carries each."""
    found = hub_tokens(spec)
    for reward in spec.rewards:
        if reward.http and reward.http.secret_ref:
            found[token_variable(reward.name)] = reward.http.secret_ref
    if spec.tracking and spec.tracking.wandb and spec.tracking.wandb.secret_ref:
        found["WANDB_API_KEY"] = spec.tracking.wandb.secret_ref
    return found


def sources(spec: TrainingSpec) -> Iterator[tuple[Role, str, ModelSource | DataSource, str]]:
    """Yield what the spec names of models and rows: what for, in which field, and its index in a mixture."""
    dataset, mixture = spec.dataset, spec.dataset.mixture or []
    named: list[tuple[Role, str, ModelSource | DataSource | None, str]] = [
        ("model", "model", spec.model, ""),
        ("train", "dataset.train", dataset.train, ""),
        *(("mixture", f"dataset.mixture[{index}]", source, str(index)) for index, source in enumerate(mixture)),
        ("eval", "dataset.eval", dataset.eval, ""),
        ("reference_model", "dpo.referenceModel.source", spec.explicit_reference, ""),
    ]
    for role, field, source, index in named:
        if source is not None:
            yield role, field, source, index


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())
