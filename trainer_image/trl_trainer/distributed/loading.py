"""Models come into memory in shards: no process makes a whole one, or at most rank 0 does.

Tensors of safetensors files are mapped as they are: they cost no memory of their own, and all processes of a node share
the pages. Every rank opens the whole model and copies its own rows, tensor by tensor; where another precision is wanted
(`later`), or 4 bits, it makes that of one tensor at a time. Where transformers has to make new tensors (experts that it
fuses), only rank 0 does; the others get the model without weights, and rank 0 sends these piece by piece and lets go of
what is sent.

A trainer is made of such a model as of any other, and `shard` splits it then, before training. accelerate would split
it at the start of training, but it first makes whole copies in fp32 of what is trained.
"""

import copy
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DynamoBackend, fsdp2_apply_ac, fsdp2_prepare_model
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel, Trainer

from trl_trainer.distributed import sharding
from trl_trainer.distributed.world import Run, broadcast, gather
from trl_trainer.errors import TrainerError

PIECE = 8 * 2**20
"""Bytes that rank 0 sends at a time."""
MAPPED = 0.9
"""Every rank opens the files if so large a share of the weights is mapped from them."""


def load(run: Run, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Return the model that `make`, a from_pretrained, returns: with its weights mapped from the files, or with weights
    on rank 0 alone and on the meta device elsewhere. `shard` or `shard_frozen` makes it whole.

    All ranks call it, where there are several; `make` gives the same on each.
    """
    made: list[PreTrainedModel] = []

    def first() -> PreTrainedModel | None:
        made.append(make())
        return None if mapped_share(made[0]) >= MAPPED else _without_weights(made[0])

    empty = broadcast(run, first)
    if run.is_main:
        return made[0]
    if empty is None:
        return make()
    # transformers learns what a class can record (the router's logits) when the first model of it is made.
    with torch.device("meta"):
        type(empty)(copy.deepcopy(empty.config))
    return empty


def mapped_share(model: nn.Module) -> float:
    """Return the share of the parameters' bytes that come from mapped files, and lie in no memory of this process."""
    starts, ends = [], []
    with open("/proc/self/maps") as lines:
        for line in lines:
            span, _, _, _, inode, *_ = line.split()
            if inode != "0":
                start, end = span.split("-")
                starts.append(int(start, 16))
                ends.append(int(end, 16))
    mapped = total = 0
    for value in model.parameters():
        start = _given(value).data_ptr()
        at = bisect_right(starts, start) - 1
        total += value.nbytes
        mapped += value.nbytes if at >= 0 and start < ends[at] else 0
    return mapped / max(1, total)


def later(value: nn.Parameter, given: torch.Tensor) -> None:
    """Let sharding fill `value` from `given`, of another precision: until then it has its shape and its precision, but
    need not have memory."""
    value.given = given


def now(value: nn.Parameter) -> None:
    """Fill a parameter at once, if it is one of `later`."""
    if hasattr(value, "given"):
        value.data = value.given.to(value.dtype)
        del value.given


def _given(value: nn.Parameter) -> torch.Tensor:
    """Return the tensor that `value` will be made of: another one, or itself."""
    found: torch.Tensor = getattr(value, "given", value.detach())
    return found


def _without_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy whose parameters are on the meta device; its buffers, which no file may have, are real."""
    return copy.deepcopy(model, {id(value): _meta(value) for value in model.parameters()})


def _meta(value: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=value.requires_grad)


def shard(run: Run, trainer: Trainer) -> None:
    """Split the model of a trainer that was made of `load`'s over all ranks, as accelerate would. All ranks call it.

    TrainerError without FSDP (sharding.py).
    """
    if not trainer.is_fsdp_enabled:
        raise TrainerError(
            "Unknown",
            f"{run.world} processes, but the model is not sharded: FSDP is off; check accelerate and torch",
        )
    accelerator, model = trainer.accelerator, trainer.model
    plugin = accelerator.state.fsdp_plugin
    plugin.set_auto_wrap_policy(model)
    if plugin.activation_checkpointing:
        fsdp2_apply_ac(accelerator, model)
    trains_rows = isinstance(model, PeftModel) and run.job.spec.model.add_tokens is not None

    def wrap() -> None:
        if not trains_rows:
            fsdp2_prepare_model(accelerator, model)
            return
        # Who asks for the weight of a module of which peft trains rows gets a new one, unless the adapter is off.
        with model.disable_adapter():
            _shard_tables(model, plugin, sharding.mesh(trainer.args, run))
            fsdp2_prepare_model(accelerator, model)

    _stream(run, model, wrap, isinstance(plugin.cpu_offload, CPUOffloadPolicy))
    keep_sharded(accelerator, model)


def _shard_tables(model: Any, plugin: Any, mesh: DeviceMesh | None) -> None:
    """Make embedding and head one group, so that both are whole from the embedding's forward pass on: TRL's fused head
    reads the head's weight and does not call the module, and peft cannot put rows into shards."""
    found = [model.get_input_embeddings(), getattr(model, "get_output_embeddings", lambda: None)()]
    fully_shard(
        [module for module in found if module is not None],
        mp_policy=plugin.mixed_precision_policy,
        offload_policy=plugin.cpu_offload,
        reshard_after_forward=False,
        mesh=mesh,
    )


def shard_frozen(run: Run, model: PreTrainedModel, policy: MixedPrecisionPolicy, mesh: DeviceMesh | None) -> None:
    """Split a model of `load`'s that is only asked, such as a reference, by block, over `mesh` (sharding.mesh). All
    ranks call it.

    The head is in the outermost group, whose weights are there for the whole forward pass: TRL's fused head reads
    `lm_head.weight` and does not call the module.
    """
    model.requires_grad_(False)
    blocks = set(model._no_split_modules or ())
    fsdp = run.job.spec.fsdp
    # Without its own word on resharding the outermost group would stay gathered.
    options: dict[str, Any] = {"mp_policy": policy, "reshard_after_forward": fsdp.reshard_after_forward, "mesh": mesh}
    if fsdp.cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy()

    def wrap() -> None:
        for module in model.modules():
            if type(module).__name__ in blocks:
                fully_shard(module, **options)
        fully_shard(model, **options)

    _stream(run, model, wrap, fsdp.cpu_offload)
    model.eval()


def _stream(run: Run, model: Any, wrap: Callable[[], object], offload: bool) -> None:
    """Put the model on the meta device, let `wrap` make it FSDP2's, and give each rank its rows."""
    sent = any(gather(run, any(value.is_meta for value in model.parameters())))
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            places.setdefault(value, []).append((module, name))
    for value, where in places.items():
        _set(where, _meta_in_4_bits(value) if in_4_bits(value) else _meta(value))
    wrap()
    sender = _Sender(run)
    while places:
        # What rank 0 has sent can go.
        value = next(iter(places))
        where = places.pop(value)
        target = getattr(*where[0])
        whole = _quantized(run, value, target, sent) if in_4_bits(value) else _given(value)
        local = _local(target, offload)
        if sent:
            sender.send(whole, target, local)
        else:
            local.copy_(whole[_rows(target)])
        rows = DTensor.from_local(
            local, target.device_mesh, target.placements, run_check=False, shape=target.shape, stride=target.stride()
        )
        _set(where, nn.Parameter(rows, requires_grad=target.requires_grad))


def in_4_bits(value: nn.Parameter) -> bool:
    """Return whether `value` is a weight of bitsandbytes. It is quantized when it comes to a device, and until then has
    the shape and the values of the layer."""
    # As accelerate and peft ask, without the package.
    return type(value).__name__ == "Params4bit"


def _meta_in_4_bits(value: Any) -> nn.Parameter:
    """Return what `value` is when it is quantized, on meta: two values a byte, in one column of its storage type."""
    rows = (value.numel() + 1) // (2 * value.quant_storage.itemsize)
    empty = torch.empty((rows, 1), dtype=value.quant_storage, device="meta")
    found: nn.Parameter = type(value)(empty, **{**vars(value), "bnb_quantized": True})
    return found


def _quantized(run: Run, value: Any, target: DTensor, sent: bool) -> torch.Tensor:
    """Return the values of a quantized weight, and give its layer the constants (quant_state), which are not sharded.

    Every rank quantizes all of it, and keeps its rows: a layer at a time, on the device. With `sent` rank 0 does, the
    others get its constants, and on them what is returned has no values.
    """
    layer, device = value.module, target.device_mesh.device_type

    def quantize() -> torch.Tensor:
        found: torch.Tensor = type(value)(_given(value).to(value.dtype), **vars(value)).to(device)
        return found

    if not sent:
        return quantize().detach()
    made: list[torch.Tensor] = []

    def constants() -> tuple[type, dict[str, torch.Tensor]]:
        made.append(quantize())
        state = layer.quant_state
        return type(state), {name: part.cpu() for name, part in state.as_dict(packed=True).items()}

    kind, found = broadcast(run, constants)
    if run.is_main:
        return made[0].detach()
    layer.quant_state = kind.from_dict(found, device=torch.device(device))  # type: ignore[attr-defined]
    return value.detach()


def _set(where: list[tuple[nn.Module, str]], value: nn.Parameter) -> None:
    for module, name in where:
        setattr(module, name, value)


def _rows(target: DTensor) -> slice:
    """Return which rows of the whole parameter are this rank's."""
    [dim] = [index for index, placement in enumerate(target.placements) if isinstance(placement, Shard)]
    size, rows = target.device_mesh.size(dim), target.shape[0]
    each = -(-rows // size)
    start = min(rows, target.device_mesh.get_local_rank(dim) * each)
    return slice(start, min(rows, start + each))


def _local(target: DTensor, offload: bool) -> torch.Tensor:
    """Return memory for this rank's rows, where FSDP2 wants them."""
    rows = _rows(target)
    shape = (rows.stop - rows.start, *target.shape[1:])
    return torch.empty(shape, dtype=target.dtype, device="cpu" if offload else target.device_mesh.device_type)


class _Sender:
    """Sends parameters that only rank 0 has, through one small buffer: fresh memory for each piece would be scattered
    between the shards and never be given back."""

    def __init__(self, run: Run) -> None:
        self._is_main = run.is_main
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def send(self, value: torch.Tensor, target: DTensor, local: torch.Tensor) -> None:
        """Fill `local`, this rank's rows of `target`, from rank 0's `value`. All ranks call it."""
        if self._buffer.numel() == 0:
            self._buffer = torch.empty(PIECE, dtype=torch.uint8, device=target.device_mesh.device_type)
        row = target[0].numel() if target.ndim > 1 else 1
        mine = _rows(target)
        whole = value.reshape(-1)
        step = PIECE // target.element_size()
        for start in range(0, target.numel(), step):
            stop = min(target.numel(), start + step)
            piece = self._buffer.view(target.dtype)[: stop - start]
            if self._is_main:
                piece.copy_(whole[start:stop])
            dist.broadcast(piece, 0)
            first, last = max(start, mine.start * row), min(stop, mine.stop * row)
            if first < last:
                rows = local.view(-1)[first - mine.start * row : last - mine.start * row]
                rows.copy_(piece[first - start : last - start])


def keep_sharded(accelerator: Any, model: nn.Module) -> None:
    """Make `accelerator.prepare` take the sharded model as it is, and the optimizer that was made of its shards.

    The one place that changes accelerate's prepare: it finds an optimizer's parameters again by their addresses, and
    all empty shards (an adapter of rank 16 on more than 16 processes) have the address 0.
    """
    # accelerate's own mark of what it has prepared.
    model._is_accelerate_prepared = True
    accelerator.prepare_model(model)
    prepare = accelerator.prepare

    def prepare_others(*objects: Any, **options: Any) -> Any:
        if not any(thing is model for thing in objects):
            return prepare(*objects, **options)
        # Once more: transformers has had accelerate forget its models, and their gradients would be unscaled twice.
        found = [
            accelerator.prepare_model(model) if thing is model else accelerator.prepare_optimizer(thing)
            for thing in objects
        ]
        plugin = accelerator.state.dynamo_plugin
        if plugin.backend != DynamoBackend.NO:
            found = [torch.compile(model, **plugin.to_kwargs()) if thing is model else thing for thing in found]
        return found[0] if len(found) == 1 else tuple(found)

    accelerator.prepare = prepare_others
