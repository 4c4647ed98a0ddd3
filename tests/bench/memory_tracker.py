"""The memory of one GPU process, as torch counts it without a GPU: fake tensors, a fake process group, a CPU mesh.

The model, TRL's fused head, peft's adapters and FSDP2 are the real ones; every allocation of one micro-step's forward
and backward pass is counted by torch's FSDPMemTracker (with one process by its MemTracker). Not the real ones, because
they need a GPU: the fused head's kernels, which work in place (here: functions that allocate nothing), and
bitsandbytes' 4-bit linear layer (here: a layer with its sizes). What the allocator loses between tensors, the CUDA
context and NCCL's buffers are not counted.
"""

import contextlib
import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin, fsdp2_apply_ac, fsdp2_prepare_model
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker, _FSDPModMemStats
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, Qwen2Config, Qwen3Config
from trl.kernels import chunked_logprob
from trl.trainer.utils import add_fused_lm_head

SHAPES: dict[str, Any] = {
    # Qwen2.5-0.5B and 1.5B, Llama-3.1-8B, Qwen3-32B, Llama-3.3-70B.
    "0.5B": (Qwen2Config, 151936, 896, 4864, 24, 14, 2, True),
    "1.5B": (Qwen2Config, 151936, 1536, 8960, 28, 12, 2, True),
    "8B": (LlamaConfig, 128256, 4096, 14336, 32, 32, 8, False),
    "32B": (Qwen3Config, 151936, 5120, 25600, 64, 64, 8, False),
    "70B": (LlamaConfig, 128256, 8192, 28672, 80, 64, 8, False),
}

HEAD_OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")
"""The most that TRL 1.16 asks of the fused head (dpo); sft and grpo ask for less, a few bytes per token."""

FEW = (3, 4)
"""A model of all its blocks is counted from two of so few. With fewer the peak may lie elsewhere."""

BLOCK = 64
"""4-bit weights share a constant in blocks of so many (bitsandbytes), and constants in blocks of 256."""


@dataclass(frozen=True)
class Shard:
    """One process of a model: what its weights and activations depend on."""

    shape: str
    method: str
    """full, lora or qlora."""
    world: int
    checkpointing: bool
    whole_gradients: bool = False
    """The gradients of earlier micro-steps are whole (no_sync) instead of sharded (sync_each_batch)."""
    layers: int | None = None
    """So many blocks instead of the shape's."""


@dataclass(frozen=True)
class Case(Shard):
    stage: str = "sft"
    """sft, dpo or grpo."""
    rows: int = 4
    """perDeviceBatchSize."""
    length: int = 1024
    """Tokens per row; grpo: of which half are the prompt's."""
    steps: int = 4
    """gradientAccumulationSteps; grpo generates for all of them at once."""

    @property
    def shard(self) -> Shard:
        return Shard(self.shape, self.method, self.world, self.checkpointing, self.whole_gradients, self.layers)

    @property
    def sequences(self) -> int:
        return self.rows * (2 if self.stage == "dpo" else 1)


def config(shape: str, blocks: int | None = None) -> Any:
    kind, vocabulary, hidden, wide, layers, heads, groups, tied = SHAPES[shape]
    return kind(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=wide, num_hidden_layers=blocks or layers,
        num_attention_heads=heads, num_key_value_heads=groups, head_dim=128 if shape == "32B" else hidden // heads,
        tie_word_embeddings=tied, max_position_embeddings=8192, architectures=[kind.__name__[:-6] + "ForCausalLM"],
        attn_implementation="sdpa",
    )  # fmt: skip


class Params4bit(torch.nn.Parameter):
    """bitsandbytes' name of its weights, by which accelerate knows that adapters stay in bf16."""


class Linear4bit(torch.nn.Linear):
    """A frozen linear layer of bitsandbytes in sizes: weights as nf4 in bf16 storage, constants beside them whole on
    every process, and a bf16 copy for the time of each product."""

    def __init__(self, of: torch.nn.Linear) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = of.in_features, of.out_features, of.bias
        count = of.weight.numel()
        self.weight = Params4bit(torch.empty(count // 4, 1, dtype=torch.bfloat16), False)
        self.register_buffer("constants", torch.empty(count // BLOCK + 4 * count // (BLOCK * 256), dtype=torch.uint8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Product4bit.apply(x.to(torch.bfloat16), self.weight, self.bias, self.out_features, self.in_features)


class _Product4bit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, rows: int, columns: int) -> Any:
        ctx.save_for_backward(weight)
        ctx.shape = (rows, columns)
        return torch.nn.functional.linear(x, torch.empty(rows, columns, dtype=torch.bfloat16), bias)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad @ torch.empty(*ctx.shape, dtype=torch.bfloat16), None, None, None, None


@contextlib.contextmanager
def head_as_on_a_gpu() -> Any:
    """Let the fused head's tiles be worked on in place and its products accumulate in fp32, as CUDA does both."""
    kept = {name: getattr(chunked_logprob, name) for name in ("_forward_tile", "_backward_tile", "_addmm_fp32")}
    chunked_logprob._forward_tile = lambda *_, **__: None
    chunked_logprob._backward_tile = lambda *_, **__: None
    chunked_logprob._addmm_fp32 = lambda *_: None
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(chunked_logprob, name, value)


def skeleton(shard: Shard, *, frozen: bool) -> Any:
    """Return the policy (frozen: the reference of full fine-tuning) with its adapter, on the meta device."""
    full = shard.method == "full"
    model = AutoModelForCausalLM.from_config(
        config(shard.shape, shard.layers), dtype=torch.float32 if full and not frozen else torch.bfloat16
    )
    add_fused_lm_head(model, outputs=HEAD_OUTPUTS)
    if frozen:
        model.requires_grad_(False)
    elif not full:
        if shard.method == "qlora":
            _quantize(model)
        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        if shard.method == "qlora":
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)
            model.enable_input_require_grads()
        elif shard.checkpointing:
            model.enable_input_require_grads()
    return model


def build(shard: Shard, mesh: Any, *, frozen: bool = False) -> Any:
    """Return the model as our trainer builds it, sharded; called under fake tensors."""
    with unset_fake_temporarily(), torch.device("meta"):
        model = skeleton(shard, frozen=frozen)
    fresh: dict[Any, Any] = {}
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                made = type(value)(torch.empty(value.shape, dtype=value.dtype), value.requires_grad)
                module._parameters[name] = fresh.setdefault(value, made)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
    if shard.world == 1:
        if shard.checkpointing and not frozen:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train(not frozen)
        return model
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=None)
    if frozen:
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        return fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True).eval()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, mixed_precision_policy=policy, reshard_after_forward=True,
        auto_wrap_policy="TRANSFORMER_BASED_WRAP", activation_checkpointing=shard.checkpointing,
    )  # fmt: skip
    plugin.set_auto_wrap_policy(model)
    accelerator: Any = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="bf16", is_main_process=False,
        torch_device_mesh=mesh, parallelism_config=SimpleNamespace(fsdp_dim_names=("fsdp",)),
    )  # fmt: skip
    if shard.checkpointing:
        model = fsdp2_apply_ac(accelerator, model)
    return fsdp2_prepare_model(accelerator, model).train()


def _quantize(model: Any) -> None:
    for layer in model.model.layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, torch.nn.Linear):
                layer.set_submodule(name, Linear4bit(module))


class _Whole:
    """Without the peaks of single modules: to keep those, torch walks over all modules at each operation."""

    def _update_peak_stats(self: Any, peak_state: Any) -> None:
        for device, now in self._curr_mem_snap.items():
            if self._peak_mem.get(device, 0) < now["Total"]:
                self._peak_mem[device], self._peak_mem_snap[device] = now["Total"], dict(now)

    def forget_peak(self: Any) -> None:
        self._peak_mem.clear()


class _ShardedTracker(_Whole, FSDPMemTracker):
    """Knows the head, whose weights TRL's fused head reads without calling it (or gathers by itself)."""

    def _fsdp_param_group_post_backward(self, fsdp_mod: Any, orig_fsdp_param_group_post_backward: Any) -> Any:
        tracked = super()._fsdp_param_group_post_backward(fsdp_mod, orig_fsdp_param_group_post_backward)

        def post_backward(*args: Any, **kwargs: Any) -> None:
            group = fsdp_mod._get_fsdp_state()._fsdp_param_group
            was_gathered = all(hasattr(value, "_unsharded_param") for value in group.fsdp_params)
            (tracked if was_gathered else orig_fsdp_param_group_post_backward)(*args, **kwargs)

        return post_backward

    def reset_mod_stats(self) -> None:
        super().reset_mod_stats()
        head = self._root_mod.get_output_embeddings()
        if isinstance(head, FSDPModule):
            self.memory_tracking[head] = _FSDPModMemStats("head")


class _Tracker(_Whole, MemTracker):
    """Without torch's hooks on modules either: they fail on frozen weights, and only say which module holds what."""

    def _pre_fw_hook(self, module: Any, inputs: Any) -> None: ...

    def _post_fw_hook(self, module: Any, inputs: Any, outputs: Any) -> None: ...

    def _pre_bw_hook(self, module: Any, args: Any) -> None: ...

    def _post_bw_hook(self, module: Any, args: Any) -> None: ...


def _tracker(model: Any) -> Any:
    if isinstance(model, FSDPModule):
        sharded = _ShardedTracker(model)
        sharded.reset_mod_stats()
        return sharded
    tracker = _Tracker()
    tracker.track_external(model)
    return tracker


def _total(tracker: Any, when: str) -> int:
    return int(sum(found["Total"] for found in tracker.get_tracker_snapshot(when).values()))


def _local(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _forward(model: Any, sequences: int, length: int) -> torch.Tensor:
    """Return the log-probabilities of a batch with padding, for which attention gets a mask."""
    ids = torch.zeros(sequences, length, dtype=torch.long)
    mask = torch.ones(sequences, 1, length, length, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        found: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True).log_probs
    return found


@contextlib.contextmanager
def process(shard: Shard, *, frozen: bool = False) -> Any:
    """Yield the model of a process among `shard.world`, without memory behind it."""
    mesh = None
    if shard.world > 1:
        dist.init_process_group("fake", rank=0, world_size=shard.world, store=FakeStore())
        mesh = init_device_mesh("cpu", (shard.world,), mesh_dim_names=("fsdp",))
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), head_as_on_a_gpu():
            yield build(shard, mesh, frozen=frozen)
    finally:
        if shard.world > 1:
            dist.destroy_process_group()
        gc.collect()


@cache
def micro_step(shard: Shard, sequences: int, length: int) -> dict[str, int]:
    """Return the bytes of the last micro-step of a step, when the gradients of earlier ones are there: at its start,
    after its forward pass, and the peaks of both passes (apart, as blocks may add more to one than to the other); and
    the optimizer's states, two per value, from the shards' sizes."""
    with process(shard) as model:
        trained = [value for value in model.parameters() if value.requires_grad]
        if not shard.whole_gradients:
            for value in trained:
                value.grad = torch.zeros_like(value)
        tracker = _tracker(model)
        with tracker:
            if shard.whole_gradients:
                model.set_requires_gradient_sync(False)
                _forward(model, sequences, length).sum().backward()
                model.set_requires_gradient_sync(True)
                tracker.reset_mod_stats()
            start = _total(tracker, "current")
            loss = _forward(model, sequences, length).sum()
            forward, forward_peak = _total(tracker, "current"), _total(tracker, "peak")
            tracker.forget_peak()
            loss.backward()
        return {
            "start": start,
            "forward": forward,
            "forward_peak": forward_peak,
            "backward_peak": _total(tracker, "peak"),
            "gradients": sum(_local(value).numel() * value.element_size() for value in trained),
            "optimizer": sum(2 * _local(value).numel() * value.element_size() for value in trained),
        }


@cache
def reference_pass(shard: Shard, sequences: int, length: int) -> dict[str, int]:
    """Return the bytes of the reference's forward pass: with full fine-tuning those of a model of its own, else what
    the policy without its adapter needs beside what it holds anyway."""
    full = shard.method == "full"
    with process(shard, frozen=full) as model:
        tracker = _tracker(model)
        without = contextlib.nullcontext() if full else model.disable_adapter()
        with without, tracker, torch.no_grad():
            start = _total(tracker, "current")
            _forward(model, sequences, length)
            end = _total(tracker, "current")
        own = 0 if full else start
        return {"peak": _total(tracker, "peak") - own, "end": end - own}


@cache
def generation(shard: Shard, sequences: int, prompt: int, completion: int) -> dict[str, int]:
    """Return the peak bytes of generation with a cache, without gradients: of reading the prompts, and of the last
    token."""
    peaks = {}
    plain = Shard(shard.shape, shard.method, shard.world, checkpointing=False, layers=shard.layers)
    for name, seen, new in (("reading", 0, prompt), ("last", prompt + completion - 1, 1)):
        # A model of its own each time: a tracker leaves hooks on modules that share a group.
        with process(plain) as model:
            config = (model.get_base_model() if hasattr(model, "get_base_model") else model).config
            model.eval()
            tracker = FSDPMemTracker(model) if shard.world > 1 else _tracker(model)
            with tracker, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                cached = DynamicCache(config=config)
                size = (sequences, config.num_key_value_heads, seen, config.head_dim)
                for index in range(config.num_hidden_layers if seen else 0):
                    cached.update(*(torch.empty(size, dtype=torch.bfloat16) for _ in "kv"), index)
                model(
                    input_ids=torch.zeros(sequences, new, dtype=torch.long),
                    attention_mask=torch.ones(sequences, 1, new, seen + new, dtype=torch.bool),
                    past_key_values=cached, use_cache=True, logits_to_keep=1,
                )  # fmt: skip
                del cached
            peaks[name] = _total(tracker, "peak")
    return peaks


def of_all_blocks(count: Callable[..., dict[str, int]], shard: Shard, *given: int) -> dict[str, int]:
    """Return what `count` would return of all blocks, from models of a few: blocks are alike, so that every one adds
    the same to each number."""
    if shard.layers is not None:
        return count(shard, *given)
    few, more = (count(replace(shard, layers=blocks), *given) for blocks in FEW)
    missing = (config(shard.shape).num_hidden_layers - FEW[0]) // (FEW[1] - FEW[0])
    assert FEW[0] + missing * (FEW[1] - FEW[0]) == config(shard.shape).num_hidden_layers
    return {name: few[name] + missing * (more[name] - few[name]) for name in few}


def track(case: Case) -> dict[str, Any]:
    """Return the bytes of a case: its `peak`, and what it is made of."""
    step = of_all_blocks(micro_step, case.shard, case.sequences, case.length)
    found: dict[str, Any] = {"step": step}
    peaks = [step["forward_peak"], step["backward_peak"]]
    if case.stage != "sft":
        # grpo asks about fewer sequences than dpo, and when there is more room: the same count serves.
        reference = found["reference"] = of_all_blocks(reference_pass, case.shard, 2 * case.rows, case.length)
        # dpo asks the reference while the policy's activations wait for their backward pass; grpo asks it before.
        held = step["forward"] if case.stage == "dpo" else step["start"] - step["gradients"]
        resident = reference["end"] if case.method == "full" else 0
        peaks = [max(peaks) + resident, held + reference["peak"]]
        if case.stage == "grpo":
            half = case.length // 2
            made = of_all_blocks(generation, case.shard, case.rows * case.steps, half, case.length - half)
            found["generation"] = made
            peaks += [peak + resident for peak in made.values()]
    return {"peak": max(peaks) + step["optimizer"], **found}
