"""FSDP2 as we want it, the proof that it is on (accelerate can fall back to DDP, train replicas and exit 0), and what
is gathered."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate.parallelism_config import ParallelismConfig
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_trainer.distributed import precision, world
from trl_trainer.distributed.world import Run
from trl_trainer.errors import TrainerError


def configure(args: TrainingArguments, run: Run, *, sync_each_batch: bool) -> None:
    """Set in `args` how several processes work together, before a trainer is made of them; one has no FSDP.

    Precision: accelerate keeps a policy that it is given (`fsdp_plugin_args` holds its plugin's own arguments). Set
    later it would come too late: TRL shards the reference when the trainer is made.
    `sync_each_batch`: reduce gradients after every micro-step. accelerate reduces them once a step, which keeps them
    whole on every process in between: 4 bytes for each trained parameter (preflight/memory.py decides).
    """
    if args.fsdp_plugin_args is None:
        return
    args.parallelism_config = _hybrid(run)
    args.fsdp_plugin_args["mixed_precision_policy"] = precision.policy(run.job.spec.training.precision)
    args.accelerator_config.gradient_accumulation_kwargs = {"sync_each_batch": sync_each_batch}


def _hybrid(run: Run) -> ParallelismConfig | None:
    """Return fsdp.hybrid in accelerate's words, its device mesh made: (node, process of the node); None without.

    torchrun numbers the processes of a node in a row, so that the inner dimension, which shards, is one node. The
    groups of a mesh get torch's timeout (10 minutes with NCCL), hence ours is set.
    """
    job = run.job
    if not job.spec.fsdp.hybrid or job.num_nodes == 1:
        return None
    found = ParallelismConfig(dp_replicate_size=job.num_nodes, dp_shard_size=job.num_proc_per_node)
    mesh = found.get_device_mesh(run.device)
    for name in found.fsdp_dim_names:
        dist.set_timeout(world.timeout(run.job), mesh.get_group(name))
    return found


def mesh(args: TrainingArguments, run: Run) -> DeviceMesh | None:
    """Return the processes over which accelerate shards the model of a trainer with `args`, as `configure` left them;
    None for all of them."""
    config = args.parallelism_config
    return None if config is None else config.get_device_mesh(run.device)[tuple(config.fsdp_dim_names)]


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


def forget_pass(model: torch.nn.Module) -> None:
    """Leave a model, sharded or not, as it is before a pass, after one that has failed, forward or backward, or has no
    backward pass: FSDP2 would take the next one for a part of it. Gradients are dropped."""
    if isinstance(model, FSDPModule):
        model.reset_iter_state()


@contextmanager
def only_asked(model: torch.nn.Module) -> Iterator[None]:
    """Leave a model, sharded or not, as it was before forward passes that no backward pass follows.

    What FSDP2 does not reshard after a forward (fsdp.reshardAfterForward false; embedding and head of an adapter with
    new tokens) would stay whole, and an optimizer that is made then would train copies. Gradients are dropped.
    """
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    yield
    # Not `FSDPModule.reshard` of each module: it leaves what it takes to be in the middle of a forward pass.
    forget_pass(model)
    # peft turns an adapter off and on in what is there: shards before the pass, whole parameters after it.
    for name in trained:
        model.get_parameter(name).requires_grad_(True)


class ShardingCheck(TrainerCallback):
    """Runs `check` before the first step."""

    def __init__(self, trainer: Trainer, world: int) -> None:
        self._trainer = trainer
        self._world = world

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        check(self._trainer, self._world)


def gather_trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the trained parameters and the buffers of a sharded model by name, whole and in host memory, on rank 0;
    nothing on the others. All ranks call it. Frozen weights are never gathered."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    found: dict[str, torch.Tensor] = get_model_state_dict(model, options=options)
    return found
