"""What no schema can say of a spec: how much it may hold, and that it has one hub token."""

import json
from collections.abc import Iterator
from typing import Any, Literal

from trl_contract.sources import DataSource, ModelSource, SecretKeyRef
from trl_contract.spec import TrainingSpec

MAX_INLINE_BYTES = 128 * 1024
MAX_CONFIG_MAP_BYTES = 960 * 1024
"""What a run's ConfigMap may hold of the spec; the API server takes 1 MiB with paths and resolved defaults."""

Reason = Literal["InlineTooLarge", "SpecTooLarge", "InvalidSpec"]


def refused(spec: TrainingSpec) -> tuple[Reason, str] | None:
    """Return why no job may have this spec, for machines and, from the field on, for people; None if one may."""
    # The trainer gets the spec with its defaults resolved, and inline rows as a file too.
    total = _size(spec.to_wire())
    for field, source in _sources(spec):
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
    if len(secrets := hub_secrets(spec)) > 1:
        names = ", ".join(f"{ref.name}/{ref.key}" for ref in secrets)
        return "InvalidSpec", f"tokenSecretRef: a job has one hub token, but {names} are named: use one Secret"
    return None


def hub_secrets(spec: TrainingSpec) -> list[SecretKeyRef]:
    """Return the different token references of the hub sources; the libraries know one token only."""
    refs = [source.hub.token_secret_ref for _, source in _sources(spec) if source.hub and source.hub.token_secret_ref]
    return [ref for index, ref in enumerate(refs) if ref not in refs[:index]]


def _sources(spec: TrainingSpec) -> Iterator[tuple[str, ModelSource | DataSource]]:
    """Yield what the spec names of models and rows, and in which field."""
    dataset, mixture = spec.dataset, spec.dataset.mixture or []
    named: dict[str, ModelSource | DataSource | None] = {
        "model": spec.model,
        "dataset.train": dataset.train,
        **{f"dataset.mixture[{index}]": source for index, source in enumerate(mixture)},
        "dataset.eval": dataset.eval,
        "dpo.referenceModel.source": spec.explicit_reference,
    }
    for field, source in named.items():
        if source is not None:
            yield field, source


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())
