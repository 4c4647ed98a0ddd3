"""FSDP2 as we want it, and the proof that it is on: accelerate can fall back to DDP, train replicas and exit 0."""

from typing import Any

from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_trainer.distributed import precision
from trl_trainer.distributed.world import Run
from trl_trainer.errors import TrainerError


def configure(args: TrainingArguments, run: Run, *, sync_each_batch: bool) -> None:
    """Set in `args` how several processes work together, before a trainer is made of them.

    Precision: accelerate keeps a policy that it is given (`fsdp_plugin_args` holds its plugin's own arguments). Set
    later it would come too late: TRL shards the reference when the trainer is made.
    `sync_each_batch`: reduce gradients after every micro-step. accelerate reduces them once a step, which keeps them
    whole on every process in between: 4 bytes for each trained parameter (preflight/memory.py decides).
    """
    if run.world == 1:
        return
    args.fsdp_plugin_args["mixed_precision_policy"] = precision.policy(run.job.spec.training.precision)
    args.accelerator_config.gradient_accumulation_kwargs = {"sync_each_batch": sync_each_batch}


def check(trainer: Trainer, world: int) -> None:
    """Raise TrainerError if several processes train without FSDP. Call it when the model is prepared, before an
    evaluation (after one, parameters show as plain tensors)."""
    if world == 1:
        return
    plain = [name for name, value in trainer.model.named_parameters() if not isinstance(value, DTensor)]
    if not trainer.is_fsdp_enabled or plain:
        raise TrainerError(
            "Unknown",
            f"{world} processes, but the model is not sharded: FSDP is {'on' if trainer.is_fsdp_enabled else 'off'}, "
            f"{len(plain)} parameters are no DTensor ({', '.join(plain[:3])}); check the versions of accelerate, torch",
        )


class ShardingCheck(TrainerCallback):
    """Runs `check` before the first step."""

    def __init__(self, trainer: Trainer, world: int) -> None:
        self._trainer = trainer
        self._world = world

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        check(self._trainer, self._world)
