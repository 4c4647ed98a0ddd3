"""What a part puts into a rank: clocks and memory counters, a kill, FSDP2 with one process. Runs inside the rank."""

import importlib.metadata
import json
import os
import platform
import resource
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers.trainer
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

PACKAGES = ("torch", "triton", "transformers", "trl", "accelerate", "peft", "bitsandbytes")
MEASURES = "measures.json"
"""In the job's folder."""


def install(*, fsdp: bool = False, kill_at: int | None = None, saved: int = 0) -> None:
    """Measure the job of this process; train it with FSDP2 although it is alone; kill it when it enters a step and the
    checkpoint of step `saved` is published."""
    if fsdp:
        shard_one_process()
    # Each Trainer gets one of each, whatever ours passes it.
    transformers.trainer.DEFAULT_CALLBACKS.append(Measures)
    if kill_at is not None:
        Kill.step, Kill.saved = kill_at, saved
        transformers.trainer.DEFAULT_CALLBACKS.append(Kill)


class Measures(TrainerCallback):
    """Times of the steps, and the most memory that training takes."""

    def __init__(self) -> None:
        self._begin: list[float] = []
        self._end: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begin.append(_now())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._end.append(_now())

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        shards = [isinstance(value, DTensor) for value in model.parameters()]
        found = {
            "begin": self._begin,
            "end": self._end,
            "first": state.global_step - len(self._end) + 1,
            "peak": peak(),
            "sharded": all(shards),
            "backend": dist.get_backend_config() if dist.is_initialized() else None,
            "machine": machine(),
        }
        (Path(args.output_dir) / MEASURES).write_text(json.dumps(found, default=str))


class Kill(TrainerCallback):
    """Ends this process as a lost node does."""

    step = saved = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step:
            manifest, end = Path(args.output_dir) / f"checkpoint-{self.saved}" / "MANIFEST.json", time.monotonic() + 60
            while not manifest.exists():
                assert time.monotonic() < end, f"checkpoint {self.saved} is not published"
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak() -> int:
    """Return the most bytes that were allocated on the GPU, or (without one) that this process has had."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> dict[str, str]:
    """Return what a reader must know to compare: the card and the versions."""
    found = {"Python": platform.python_version()}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {"card": f"{card.name}, {card.total_memory / 2**30:.0f} GiB", "CUDA": str(torch.version.cuda)}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def shard_one_process() -> None:
    """Let one process train as several do: a process group, TRL's arguments for two, FSDP2 around the model.

    What ours asks of the world size (the form of checkpoints, who exports) stays that of one process.
    """
    from trl_trainer.distributed import world
    from trl_trainer.models import arguments
    from trl_trainer.preflight import image

    # accelerate looks for processes in the environment.
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    of_one, start = arguments.arguments, world.start

    def of_two(job: Any, stage: Any, *, world: int, **rest: Any) -> dict[str, Any]:
        return of_one(job, stage, world=2, **rest)

    def with_group(job: Any) -> Any:
        run = start(job)
        backend = "cpu:gloo,cuda:nccl" if run.device == "cuda" else "cpu:gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return run

    arguments.arguments, world.start = of_two, with_group
    # It would refuse to offload without FSDP.
    image._check_offload = lambda job, device: None


def compare_merged(base: str, final: str, output: str) -> None:
    """Write how far the exported model's logits lie from those of base and adapter, and from those of the base alone.

    A model is loaded in fp32, and asked for 4 rows of 64 tokens.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def logits(model: Any) -> torch.Tensor:
        ids = torch.arange(256, device=device).reshape(4, 64)
        with torch.no_grad():
            return model.to(device).eval()(input_ids=ids).logits.float().cpu()

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    alone = logits(plain)
    together = logits(PeftModel.from_pretrained(plain, f"{final}/adapter"))
    merged = logits(AutoModelForCausalLM.from_pretrained(final, dtype=torch.float32))
    found = {
        "merged": float((merged - together).abs().max()),
        "adapter": float((together - alone).abs().max()),
    }
    Path(output).write_text(json.dumps(found))
