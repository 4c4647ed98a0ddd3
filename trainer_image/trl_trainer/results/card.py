"""The model card in `final/README.md`: what the model is, where it comes from, and what it is worth."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trl_contract.jobfile import JobFile
from trl_trainer.data import DataReport
from trl_trainer.stage import Stage

PACKAGES = ("trl", "transformers", "torch", "accelerate", "peft", "datasets")


def text(
    job: JobFile,
    stage: Stage,
    *,
    data: DataReport,
    parent: str | None,
    step: int,
    before: Mapping[str, float],
    after: Mapping[str, float],
    samples: list[dict[str, str]],
) -> str:
    """Return the card as Markdown with a YAML head. Pure but for the versions of the installed packages."""
    spec, base = job.spec, source(job)
    head = ["---", "library_name: transformers", f"tags: [trl, {job.kind.removesuffix('Job').lower()}, trl-operator]"]
    if spec.model.hub is not None:
        head.append(f"base_model: {spec.model.hub.repo}")
    method = {"none": "all weights", "lora": "LoRA, merged", "qlora": "QLoRA, merged"}[spec.peft.method]
    origin = {
        "job": f"{job.kind} {job.namespace}/{job.name}, uid {job.uid}, attempt {job.attempt}",
        "method": f"{stage.method}, {method}",
        "base model": base,
        "parent job": parent or "none known",
        "training data": f"{data.train} rows, {data.form}, {data.train_file.digest}",
        "held-out data": f"{data.eval} rows, {data.eval_file.digest}",
        "steps": str(step),
        "processes": str(job.world_size),
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }
    parts = ["\n".join([*head, "---"]), f"# {job.name}", _table(("", ""), list(origin.items()))]
    names = [name for name in after if name in before] if before else list(after)
    if after:
        rows = [(name, _number(before.get(name)), _number(after[name])) for name in names]
        parts += ["## Held-out rows", _table(("metric", "before", "after"), rows)]
    if samples:
        cells = [(s["prompt"], s["before"], s["after"]) for s in samples]
        parts += ["## Answers", _table(("prompt", "before", "after"), cells)]
    parts += ["## Settings", f"```json\n{json.dumps(settings(job), indent=1, ensure_ascii=False)}\n```"]
    return "\n\n".join(parts) + "\n"


def source(job: JobFile) -> str:
    """Return where the base model came from."""
    model = job.spec.model
    if model.hub is not None:
        return f"{model.hub.repo}@{model.hub.revision or 'default branch'}"
    if model.from_job is not None:
        return f"{model.from_job.kind} {model.from_job.name}"
    assert model.volume is not None, "the schema allows exactly one source"
    return f"volume {model.volume.claim_name}, {model.volume.path}"


def parent(model_folder: str | None) -> str | None:
    """Return the job that made the base model, if one of ours did: its folder holds resolved.json."""
    path = Path(model_folder or "") / "resolved.json"
    if model_folder is None or not path.exists():
        return None
    made = json.loads(path.read_text())
    return f"{made['kind']} {made['namespace']}/{made['name']}, uid {made['uid']}"


def settings(job: JobFile) -> dict[str, Any]:
    """Return the sections of the spec that shape the result; references to Secrets are names only, and stay out."""
    wire = job.spec.to_wire()
    return {name: wire[name] for name in ("training", "peft", "fsdp", "sft", "reward", "dpo", "grpo") if name in wire}


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", "<br>")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
