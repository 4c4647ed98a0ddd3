"""The reference's log-probabilities of all pairs, asked once (dpo.referenceModel.mode precompute), not in every step.

TRL asks while it makes its trainer, before anything is sharded, in a cache whose key leaves out what they depend on.
Ours asks the models of the trainer as it trains, by TRL's own method, and keeps the answers beside the jobs' folders on
the storage volume: later attempts take them, and so do other jobs that would get the same.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch

from trl_contract.jobfile import JobFile
from trl_trainer import files
from trl_trainer.distributed import sharding
from trl_trainer.distributed.world import Run, broadcast
from trl_trainer.errors import TrainerError
from trl_trainer.launch import watchdog
from trl_trainer.models import identity
from trl_trainer.results.evaluation import same_random_state

FOLDER = "reference-log-probs"
VERSIONS = ("trl", "transformers", "peft", "torch")
COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


def precompute(run: Run, trainer: Any) -> None:
    """Give all rows of DPO's trainer the columns that TRL reads instead of asking the reference, and let go of it. All
    ranks call it, when the models are sharded and before training."""
    with watchdog.led("looking for known log-probabilities", leads=run.is_main):
        model = broadcast(run, lambda: identity.of_base(run.job, _folder(run), _owner(run)))
    trainer.train_dataset = _answered(run, trainer, model, trainer.train_dataset)
    if trainer.eval_dataset is not None:
        trainer.eval_dataset = _answered(run, trainer, model, trainer.eval_dataset)
    trainer.ref_model = None
    # What its loss looks at; of the argument it makes this, and asks before the models are as they will be.
    trainer.precompute_ref_logps = True


def _answered(run: Run, trainer: Any, model: str, rows: Any) -> Any:
    """Return the rows with the log-probabilities of each, from the volume if they are there."""
    with watchdog.led("looking for known log-probabilities", leads=run.is_main):
        path, found = broadcast(run, lambda: _known(run, key(run.job, model, _digest(rows), run.device), len(rows)))
    if found is None:
        watchdog.enter("computing the reference's log-probabilities", together=True)
        with same_random_state():
            found = _ask(trainer, rows)
        if not numpy.isfinite(found).all():
            raise TrainerError("NonFiniteLoss", "dpo.referenceModel: a log-probability of the reference is not finite")
        if run.is_main:
            files.keep_shared(path, _owner(run), lambda file: numpy.save(file, found))
    if run.is_main:
        files.take_shared(path)
    for column, values in zip(COLUMNS, found, strict=True):
        rows = rows.add_column(column, values)
    return rows


def key(job: JobFile, model: str, rows: str, device: str) -> str:
    """Return a name for the log-probabilities of a resolved job's reference: of all that they depend on. `model` tells
    the base model's files (identity.of_base), `rows` the tokenized rows, in which template and tokenizer are."""
    spec = job.spec
    parts = {
        "model": model,
        "rows": rows,
        "peft": spec.peft.method,
        # New rows of the embeddings are random.
        "addTokens": [spec.model.add_tokens, spec.training.seed] if spec.model.add_tokens else None,
        "attnImplementation": spec.model.attn_implementation,
        "precision": spec.training.precision,
        "device": device,
        "maxLength": spec.max_length,
        "ldAlpha": spec.dpo.ld_alpha,  # type: ignore[attr-defined]
        "versions": [version(package) for package in VERSIONS],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _folder(run: Run) -> Path:
    return Path(run.job.paths.storage) / FOLDER


def _owner(run: Run) -> str:
    return f"{run.job.uid}-{run.job.attempt}"


def _digest(rows: Any) -> str:
    """Return the digest of the rows' file, as `data.load` maps it."""
    [file] = rows.cache_files
    return files.sha256(Path(file["filename"]))


def _known(run: Run, name: str, rows: int) -> tuple[Path, numpy.ndarray | None]:
    """Return the file and what is kept there; None without, or where it is not that of so many rows."""
    path = _folder(run) / f"{name}.npy"
    try:
        found = numpy.load(path)
    except (OSError, ValueError, EOFError):
        return path, None
    return path, found if found.shape == (len(COLUMNS), rows) else None


def _ask(trainer: Any, rows: Any) -> numpy.ndarray:
    """Return the summed log-probabilities of each row's answers, chosen and rejected: shape (2, rows), fp32."""
    model, accelerator = trainer.ref_model or trainer.model, trainer.accelerator
    was_training = model.training
    model.eval()
    found = []
    # With an adapter it is the policy, of whose shards transformers makes the optimizer next.
    with sharding.only_asked(model):
        for batch in trainer.get_eval_dataloader(rows):
            pair = accelerator.gather_for_metrics(trainer.compute_ref_log_probs(model, batch))
            found.append(torch.stack(pair).float().cpu())
            watchdog.beat()
    model.train(was_training)
    return torch.cat(found, dim=1).numpy()
