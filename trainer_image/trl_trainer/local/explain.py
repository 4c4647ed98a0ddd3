"""`python -m trl_trainer explain`: what a job would do, in the cluster and here, without training."""

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from transformers.utils.logging import disable_progress_bar

from trl_contract import cautions
from trl_contract.cluster import SHARED_STORAGE
from trl_contract.jobfile import JobFile
from trl_contract.resolve import resolve
from trl_contract.spec import DPOSpec
from trl_trainer import data, local, preflight, rewards, stages
from trl_trainer.data import Written
from trl_trainer.errors import UserError
from trl_trainer.launch.host_memory import size
from trl_trainer.local.resource import read
from trl_trainer.local.sources import storage_folder
from trl_trainer.models import adapter, arguments
from trl_trainer.models.tokenizer import load_tokenizer
from trl_trainer.preflight import Preflight, image, memory, references, steps
from trl_trainer.preflight.architecture import Architecture
from trl_trainer.preflight.clock import Clock
from trl_trainer.preflight.lengths import Lengths
from trl_trainer.preflight.quantities import Sizes
from trl_trainer.stage import Stage

UNTOLD = ("output_dir", "report_to", "disable_tqdm", "logging_nan_inf_filter", "save_strategy", "trust_remote_code")
"""What is the same for every job."""

GPUS = (24, 40, 80, 141)
"""Memory of common GPUs in GB (L4 or RTX 4090, A100, A100 or H100, H200)."""
TYPICAL = 80 * 10**9
"""Where there is no GPU here, the plan is for such ones."""


def explain(path: Path, places: local.Places) -> int:
    """Print what the job of `path` would do and return 0, also where this machine is too small for it.

    UserError if it cannot work anywhere; what is known comes first.
    """
    clock, resource = Clock(), read(path)
    datasets.disable_progress_bars()
    disable_progress_bar()
    # What libraries say to each other of their next versions is not for the user.
    quiet = warnings.catch_warnings(action="ignore", category=FutureWarning)
    with quiet, tempfile.TemporaryDirectory(prefix="trl-") as folder:
        with clock.check("sources"):
            given, obstacles = local.imagined(resource, places, local.num_gpus(), Path(folder))
        here, there = resolve(given), resolve(local.as_written(given, resource))
        with clock.check("tokenizer"):
            tokenizer, stage = load_tokenizer(here), stages.of(here)
        _print_origins(there)
        _print_config(there, here)
        with clock.check("rows"):
            rows = data.write(here, stage, tokenizer, Path(folder) / here.uid / "data")
        base, seen = preflight.look(here, stage, tokenizer, stages.tokenizing(here, stage, tokenizer), rows, clock)
        _print_plan(there, here, stage, rows, base, seen)
        storage = _nearest(storage_folder(resource, places))
        with clock.check("memory and findings"):
            known = preflight.judge(here, stage, tokenizer, rows, base, seen, storage, _device(here))
        with clock.check("rewards"):
            findings = _try_rewards(here, rows)
        if not resource.cluster.has_shared_storage:
            findings.append(f"{SHARED_STORAGE}, unless the jobDefaults of the cluster's admin name it")
        obstacles += _refused(here, stage)
        findings += [
            f"{found.message}. {found.hint}" for found in cautions.of(there.kind, there.spec, there.world_size)
        ]
        findings += [f"this machine cannot run it, {obstacle}" for obstacle in obstacles]
        findings += [f"with this image, {refused}" for refused in _refused(there, stage) if refused not in obstacles]
        _print_findings(known, findings)
        print(f"\n{clock}")
    return 0


def _try_rewards(job: JobFile, rows: Written) -> list[str]:
    """Run the rewards on a few rows, as the trainer does before it loads weights."""
    scores = rewards.build(job)
    try:
        return scores.try_out(rows.train.take(range(3)))
    finally:
        scores.close()


def _refused(job: JobFile, stage: Stage) -> list[str]:
    """Return why `run`, or a pod, would refuse the job before it reads rows."""
    try:
        image.check(job, stage, _device(job))
    except UserError as error:
        return [error.message]
    return []


def _device(job: JobFile) -> str:
    return "cuda" if job.has_gpus else "cpu"


def _nearest(folder: Path) -> Path:
    """The folder itself, or what it will be made in."""
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def _config(job: JobFile) -> dict[str, Any]:
    world, device = job.world_size, _device(job)
    found = arguments.arguments(job, stages.of(job), output_dir="", world=world, device=device)
    if device == "cuda" and job.spec.training.gradient_checkpointing is None:
        # The plan below says what the memory of the GPU decides.
        for section in (found, found.get("fsdp_config", {})):
            section.pop("activation_checkpointing", None)
    # What these are depends on the number of rows.
    found["lr_scheduler_kwargs"] = {k: v for k, v in found["lr_scheduler_kwargs"].items() if k != "num_decay_steps"}
    if found["eval_steps"] is None:
        del found["eval_steps"]
    return {name: value for name, value in found.items() if name not in UNTOLD}


def _print_config(there: JobFile, here: JobFile) -> None:
    wanted, local_one = _config(there), _config(here)
    changed = {n: local_one.get(n) for n in (wanted | local_one) if wanted.get(n) != local_one.get(n)}
    print(f"# TRL config of {there.kind} {there.name}\n{_yaml(wanted)}")
    lora = adapter.lora_arguments(there, stages.of(there).task_type)
    if lora is not None:
        print(f"# peft's LoraConfig\n{_yaml(lora)}")
    if there.spec.rewards:
        print(f"# Rewards\n{_yaml([reward.to_wire() for reward in there.spec.rewards])}")
    if changed:
        print(f"# On this machine instead\n{_yaml(changed)}")


def _print_origins(job: JobFile) -> None:
    """Print what of the spec comes from elsewhere than the file and our defaults."""
    for origin in dict.fromkeys((job.origins or {}).values()):
        print(f"# From {origin}")
        for field in (field for field, found in (job.origins or {}).items() if found == origin):
            value: Any = job.spec.to_wire()
            for name in field.split("."):
                value = value[name]
            print(f"{field}: {value:g}")
        print()


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, default_flow_style=False))


def _print_plan(there: JobFile, here: JobFile, stage: Stage, rows: Written, base: Architecture, seen: Lengths) -> None:
    print(f"# Model\n{base.name}, {base.parameters:,} parameters, {base.trainable:,} trained\n")
    print(f"# Data\n{rows.report.form}: {rows.report.train} rows to train on, {rows.report.eval} held out")
    for i, source in enumerate(rows.report.sources):
        print(f"mixture[{i}] {source.name}: {source.rows} rows, {source.train} to train on, {source.eval} held out")
    print(f"read as {', '.join(f'{name} ({count} rows)' for name, count in rows.report.formats.items())}")
    print(f"tokens per row: median {seen.p50}, 90 % {seen.p90}, 99 % {seen.p99}, longest {seen.longest}")
    print(f"histogram: {', '.join(f'{bound}: {count}' for bound, count in seen.histogram.items())}\n")
    limits = (_available(_device(there)), preflight.available(here, _device(here)))
    columns = [_column(job, stage, base, seen, limit) for job, limit in zip((there, here), limits, strict=True)]
    print(f"# Plan\n{'':<34}{'cluster':>18}{'here':>18}")
    for name, *values in zip(_NAMES, *columns, strict=True):
        print(f"{name:<34}{values[0]:>18}{values[1]:>18}")
    if there.has_gpus:
        print(f"\n# GPUs\n{_smallest(there, preflight.sizes(there, base, seen))}")


def _smallest(job: JobFile, sizes: Sizes) -> str:
    """Return how many GPUs the job needs at least: of those here, else of common ones."""
    known = torch.cuda.is_available()
    common = [torch.cuda.mem_get_info()[1]] if known else [count * 10**9 for count in GPUS]
    found = [(memory.smallest_world(job, sizes, each, "cuda"), each) for each in common]
    fits = [f"{count} of {each / 1e9:.0f} GB" for count, each in found if count is not None]
    few = [f"no number up to 128 of {each / 1e9:.0f} GB" for count, each in found if count is None]
    plan = "" if known else f" (the plan is for {TYPICAL / 1e9:.0f} GB)"
    return f"the smallest number that fits: {', or '.join([*fits, *few])}{plan}"


def _print_findings(known: Preflight, more: list[str]) -> None:
    print(f"\nhere: {known.memory.describe()}")
    checkpoint, free = size(known.checkpoint_bytes), size(known.free_bytes)
    print(f"a checkpoint has {checkpoint}, and {free} are free here")
    too_little = [f"this machine has too little for it: {known.too_little[1]}"] if known.too_little else []
    findings = [*too_little, *known.findings, *more]
    print("\n# Worth a look" if findings else "\nnothing stands out")
    for finding in findings:
        print(f"- {finding}")


_NAMES = (
    "processes",
    "rows per optimizer step",
    "optimizer steps",
    "evaluations during training",
    "checkpoints",
    "activations",
    "the reference is asked",
    "gradients are reduced every",
    "per process: weights",
    "per process: gradients",
    "per process: optimizer",
    "per process: gathered weights",
    "per process: models beside",
    "per process: copy to save",
    "per process: activations",
    "host memory per node: loading",
    "host memory per node: saving",
    "host memory per node: exporting",
)


def _column(job: JobFile, stage: Stage, base: Architecture, seen: Lengths, limit: int) -> list[str]:
    job = references.decided(job, seen.kept)
    world = job.world_size
    training = job.spec.training
    total = stage.total_steps(job, seen.kept)
    device = _device(job)
    sizes = preflight.sizes(job, base, seen)
    needs = memory.estimate(job, sizes, limit, device)
    parts = (needs.weights, needs.gradients, needs.optimizer, needs.gathered, needs.beside, needs.saving)
    return [
        str(world),
        str(training.per_device_batch_size * training.gradient_accumulation_steps * world),
        "packing decides" if total is None else str(total),
        *_intervals(job if stage.pack(job) else steps.by_epochs(job, stage, seen.kept)),
        "recomputed" if needs.gradient_checkpointing else "kept",
        _asked(job),
        "micro-step" if needs.sync_each_batch else "step",
        *(size(part) for part in (*parts, needs.activations, *preflight.host_needs(job, needs, sizes, base).values())),
    ]


def _asked(job: JobFile) -> str:
    """Return how often the reference of a dpo job is asked."""
    if not isinstance(job.spec, DPOSpec):
        return "-"
    return "once" if job.spec.dpo.reference_model.mode == "precompute" else "in each step"


def _intervals(job: JobFile) -> list[str]:
    """Return how often the job evaluates and saves."""
    evaluation, checkpoint = job.spec.evaluation, job.spec.checkpoint
    units = ("steps", "epochs", "minutes")
    return [
        next((f"every {number:g} {unit}" for number, unit in zip(given, units, strict=False) if number), "none")
        for given in (
            (evaluation.every_steps, evaluation.every_epochs),
            (checkpoint.every_steps, checkpoint.every_epochs, checkpoint.every_minutes),
        )
    ]


def _available(device: str) -> int:
    """Return the bytes of a GPU here; where there is none, of a common one, and no bound for processes without."""
    if device == "cpu":
        return sys.maxsize
    return int(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else TYPICAL
