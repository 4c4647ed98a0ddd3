"""The job's result: `final/`, a complete model that loads with from_pretrained, and `final/adapter/` beside it."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Trainer

from trl_contract.report import Artifact
from trl_trainer.checkpoints import checkpoint, fence
from trl_trainer.distributed.world import Run
from trl_trainer.files import fsync
from trl_trainer.models import source
from trl_trainer.stage import Stage


def weights(run: Run, stage: Stage, trainer: Trainer, tokenizer: Any) -> Path | None:
    """Write the model of the last step to `<work>/final.part-<attempt>`; all ranks call it, rank 0 gets the folder.

    The state is gathered by accelerate whatever form the checkpoints have: `save_model()` writes nothing, and says
    nothing, when they are sharded.
    """
    state = trainer.accelerator.get_state_dict(trainer.model)
    if not run.is_main:
        return None
    fence.check(run.work, run.job.attempt)
    for left in run.work.glob("final.part-*"):
        shutil.rmtree(left)
    folder = run.work / f"final.part-{run.job.attempt}"
    trained = trainer.accelerator.unwrap_model(trainer.model)
    if run.job.spec.peft.method == "none":
        _save_full(run, trained, state, folder)
    else:
        trained.save_pretrained(folder / "adapter", state_dict=state)
        _save_merged(run, stage, folder)
    tokenizer.save_pretrained(folder)
    return folder


def _save_full(run: Run, trained: Any, state: dict[str, torch.Tensor], folder: Path) -> None:
    dtype = _base_dtype(run)
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    trained.config.dtype = dtype
    trained.save_pretrained(folder, state_dict=cast)


def _save_merged(run: Run, stage: Stage, folder: Path) -> None:
    kind = AutoModelForSequenceClassification if stage.is_classifier else AutoModelForCausalLM
    extra = {"num_labels": 1} if stage.is_classifier else {}
    base = kind.from_pretrained(
        source.path(run.job), revision=run.job.spec.model.revision, dtype="auto", use_safetensors=True, **extra
    )
    PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().save_pretrained(folder)


def _base_dtype(run: Run) -> torch.dtype:
    """The base model's own precision: what is trained in fp32 for the optimizer's sake is not stored so."""
    config = source.read_config(source.path(run.job), run.job.spec.model.revision, "model")
    return config.dtype or torch.float32


def publish(run: Run, folder: Path) -> list[Artifact]:
    """Make `folder` the job's `final/` in one rename, durable, and return what it holds."""
    final = run.work / "final"
    for path in (*sorted(folder.rglob("*")), folder):
        fsync(path)
    fence.check(run.work, run.job.attempt)
    if final.exists():
        # Left by an attempt that died after this point: its weights are those of the same last step.
        checkpoint.remove(final)
    os.rename(folder, final)
    fsync(run.work)
    found = [Artifact(type="model", uri=f"{run.job.uid}/final", digest=digest(final))]
    if (final / "adapter").is_dir():
        found.append(Artifact(type="adapter", uri=f"{run.job.uid}/final/adapter", digest=digest(final / "adapter")))
    return found


def digest(folder: Path) -> str:
    """Return sha256:<hex> over the names and contents of all files below `folder`, in order of name."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            total.update(f"{path.relative_to(folder)}\n{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()}"
