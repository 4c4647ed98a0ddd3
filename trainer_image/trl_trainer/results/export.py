"""The job's result: `final/`, a complete model that loads with from_pretrained, and `final/adapter/` beside it."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import Trainer

from trl_contract.report import Artifact
from trl_trainer.checkpoints import checkpoint, fence
from trl_trainer.distributed import world
from trl_trainer.distributed.gathering import to_main
from trl_trainer.distributed.world import Run
from trl_trainer.errors import TrainerError
from trl_trainer.files import fsync, sha256, share, total_digest
from trl_trainer.launch import watchdog
from trl_trainer.models import skeleton, source, vocabulary
from trl_trainer.models.skeleton import Skeleton
from trl_trainer.preflight.ends import TOKENS
from trl_trainer.results.merge import merge
from trl_trainer.results.shards import Shards
from trl_trainer.stage import Stage


@dataclass(frozen=True)
class Written:
    """The model of the last step, not yet published."""

    folder: Path
    digests: dict[str, str]
    """sha256 of the files that are on disk, by their path in the folder."""


def write(run: Run, stage: Stage, trainer: Trainer, tokenizer: Any) -> Written | None:
    """Write the model of the last step to `<work>/final.part-<attempt>`; all ranks call it, rank 0 gets the folder.

    Rank 0 holds one file of the model at a time (skeleton.PART_BYTES), each of the others one shard of one tensor.
    """
    folder = run.work / f"final.part-{run.job.attempt}"
    if run.is_main:
        fence.check(run.work, run.job.attempt)
        for left in run.work.glob("final.part-*"):
            shutil.rmtree(left)
        folder.mkdir()
    where = source.folder(run.job)
    base = skeleton.of_folder(where, source.read_config(str(where), None, "model"), stage.is_classifier)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    for name in TOKENS:
        # As the job's tokenizer says; a classifier reads its result at the last token that fills nothing up.
        setattr(base.model.config.get_text_config(), name, getattr(trained.config.get_text_config(), name, None))
    if trained.can_generate():
        base.model.generation_config = trained.generation_config
    method = run.job.spec.peft.method
    digests = _full(run, trainer, base, folder) if method == "none" else _adapter(run, trainer, base, where, folder)
    if not run.is_main:
        return None
    tokenizer.save_pretrained(folder)
    _stop_where_trained(folder, where, trained)
    check_whole(folder, stage.is_classifier)
    return Written(folder, digests)


def _stop_where_trained(folder: Path, where: Path, trained: Any) -> None:
    """Write the base's settings of generation, with the tokens as they were in training. Not by GenerationConfig: it
    does not save again what some models have in theirs."""
    path, given = folder / "generation_config.json", where / "generation_config.json"
    if path.exists():
        config = json.loads((given if given.exists() else path).read_text())
        for name in TOKENS:
            value = getattr(trained.generation_config, name)
            config |= {} if value is None else {name: value}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _full(run: Run, trainer: Trainer, base: Skeleton, folder: Path) -> dict[str, str]:
    """Write weights that were all trained, in the dtype of the base model."""
    trained = trainer.accelerator.unwrap_model(trainer.model)
    state = get_model_state_dict(trained)
    for target, origin in trained.all_tied_weights_keys.items():
        if trained.get_parameter(target) is trained.get_parameter(origin):
            del state[target]
    vocabulary.grow(base.model, vocabulary.rows(run.job))
    base.model.config = trained.config
    dtypes = {name: value.dtype for name, value in base.model.state_dict().items()}
    sizes = {name: value.numel() * dtypes[name].itemsize for name, value in state.items()}
    plan = skeleton.parts(sizes, skeleton.PART_BYTES)
    out = Shards(folder, len(plan))
    for names in plan:
        part = {name: to_main(run, state[name], dtypes[name]) for name in names}
        if run.is_main:
            out.add(base.model, part)
        del part
        _together(run)
    return out.digests


def _adapter(run: Run, trainer: Trainer, base: Skeleton, where: Path, folder: Path) -> dict[str, str]:
    """Write the adapter, and the base model with the adapter merged; only what was trained is gathered."""
    trained = trainer.accelerator.unwrap_model(trainer.model)
    # torch leaves frozen weights out by one name each: a head that is tied to the embeddings would stay.
    frozen = {name for name, value in trained.named_parameters(remove_duplicate=False) if not value.requires_grad}
    found = get_model_state_dict(trained, options=StateDictOptions(ignore_frozen_params=True))
    state = {name: to_main(run, value) for name, value in found.items() if name not in frozen}
    if run.is_main:
        trained.save_pretrained(folder / "adapter", state_dict=state)
    sizes = {name: value.nbytes for name, value in skeleton.headers(where).items()}
    plan = skeleton.parts(sizes, skeleton.PART_BYTES)
    out, rows = Shards(folder, len(plan)), vocabulary.rows(run.job)
    for names in plan:
        if run.is_main:
            out.add(*merge(base, where, folder / "adapter", names, rows))
        _together(run)
    return out.digests


def _together(run: Run) -> None:
    """Return when rank 0 has written a file: nobody waits longer than for one, whatever the size of the model."""
    world.barrier(run)
    watchdog.beat()


def check_whole(folder: Path, classifier: bool) -> None:
    """Raise TrainerError unless from_pretrained finds every weight of the model in `folder`."""
    lost = skeleton.of_folder(folder, source.read_config(str(folder), None, "final"), classifier).missing
    if lost:
        raise TrainerError("Unknown", f"the exported model lacks {len(lost)} weights ({', '.join(lost[:5])})")


def make_final(run: Run, written: Written) -> list[Artifact]:
    """Make what was written, and what has been put beside it, the job's `final/`, in one rename; return what it holds.

    Everything is on disk when this returns. Each file is read once more, for its digest, unless it was when written.
    """
    folder, final = written.folder, run.work / "final"
    digests, sizes = dict(written.digests), {}
    for path in (*sorted(folder.rglob("*")), folder):
        name = str(path.relative_to(folder))
        share(path, folder)
        if path.is_file():
            sizes[name] = path.stat().st_size
        if name in digests:
            continue
        fsync(path)
        if path.is_file():
            digests[name] = sha256(path)
    fence.check(run.work, run.job.attempt)
    if final.exists():
        # Left by an attempt that died after this point: its weights are those of the same last step.
        checkpoint.remove(final)
    os.rename(folder, final)
    fsync(run.work)
    found = [Artifact(type="model", uri=f"{run.job.uid}/final", digest=total_digest(digests), size=sum(sizes.values()))]
    adapter = {name.removeprefix("adapter/"): value for name, value in digests.items() if name.startswith("adapter/")}
    if adapter:
        size = sum(sizes[f"adapter/{name}"] for name in adapter)
        found.append(
            Artifact(type="adapter", uri=f"{run.job.uid}/final/adapter", digest=total_digest(adapter), size=size)
        )
    return found
