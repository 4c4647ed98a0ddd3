"""Blocks of steps with and without what ours adds, in turn, in one and the same trainer: one rank of the comparison.

The trainer is what rank.py builds and fits, callbacks, pacing, reports and all. In a `plain` block none of our
callbacks is called, which leaves TRL's trainer with the same config; a run of TRL's bare trainer before proves that:
its losses are equal. The blocks of a pair train on the same batches. Two trainers side by side would differ by several
percent before anything is compared, from where their weights happen to lie in memory.
"""

import argparse
import itertools
import json
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from trl_contract.resolve import resolve
from trl_trainer.launch.job import library_settings, read_job
from trl_trainer.launch.termination import Termination

MODES = {
    "ours": "everything that ours adds",
    "plain": "plain TRL",
    "again": "plain TRL once more: what the method itself adds",
    "recompute": "ours with gradient checkpointing, TRL's default",
    "free": "ours without padding",
    "defaults": "plain TRL with gradient checkpointing, its default",
    "each": "ours with gradients reduced after every micro-step",
}
CHECKPOINTED = {"recompute", "defaults"}
EVENTS = (
    "on_epoch_begin", "on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_substep_end", "on_step_end",
    "on_log", "on_epoch_end",
)  # fmt: skip
THREADS = {"progress", "watchdog"}
"""Names of the threads that ours adds; a third writes checkpoints, and none is written in blocks that count."""
WARM_UP = 2
"""Blocks that do not count; the last block, at whose end ours saves, does not count either."""
TOLERANCE = {"cpu": 1e-6, "cuda": 2e-2}
"""Of losses, relative: bf16 kernels on a GPU add in any order."""
FREE_TOLERANCE, FLOORS, MORE_PADDING = 1e-5, 3, 64
"""Of losses without padding, or FLOORS times what plain TRL differs by from itself with more padding: lengths
that are multiples of so many."""


def num_blocks(pairs: int) -> int:
    return WARM_UP + 2 * pairs + 1


def mode_of(block: int, modes: list[str]) -> str:
    """Mode of each block; who begins a pair alternates, so that a drift hits both alike."""
    pair, second = divmod(block, 2)
    return modes[second ^ (pair % 2)]


class Switch:
    """Turns our callbacks on and off, and counts the wall and CPU nanoseconds that they take, by their class."""

    def __init__(self) -> None:
        self.on = True
        self.wall: dict[str, int] = defaultdict(int)
        self.cpu: dict[str, int] = defaultdict(int)
        self.steps = 0

    def take(self, callbacks: list[Any]) -> None:
        for callback in callbacks:
            if type(callback).__module__.startswith("trl_trainer"):
                for event in EVENTS:
                    setattr(callback, event, self._switched(type(callback).__name__, getattr(callback, event)))

    def _switched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def switched(*args: Any, **kwargs: Any) -> Any:
            if not self.on:
                return None
            wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
            try:
                return call(*args, **kwargs)
            finally:
                self.wall[name] += time.perf_counter_ns() - wall
                self.cpu[name] += time.thread_time_ns() - cpu

        return switched


def thread_seconds() -> float:
    """Return the CPU seconds of the threads that ours adds, those that are there now."""
    ours = [thread.ident for thread in threading.enumerate() if thread.name in THREADS and thread.ident]
    return sum(time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in ours)


def blocks_callback(trainer: Any, switch: Switch, modes: list[str], steps: int, sync: Callable[[], None]) -> Any:
    """Return a callback that notes the seconds and the CPU seconds of each block, and turns to the next mode."""
    from transformers import TrainerCallback

    class Blocks(TrainerCallback):
        def __init__(self) -> None:
            self.samples: list[tuple[str, float, float]] = []
            self.began = (0.0, 0.0)
            self.threads = [0.0, 0.0]

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            switch.take(trainer.callback_handler.callbacks)
            if "free" in modes:
                assert all(hook.is_on for hook in self.check().hooks), "the run is padded: its log says why"

        def check(self) -> Any:
            return next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "PaddingCheck")

        # First of all callbacks at this event: what the step before logged belongs to the block before.
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps:
                return
            sync()
            block = state.global_step // steps
            if block:
                wall, cpu = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
                self.samples.append((mode_of(block - 1, modes), wall, cpu))
            self.threads[block > 0] = thread_seconds()
            self.turn(mode_of(block, modes))
            self.began = (time.perf_counter(), time.process_time())

        def turn(self, mode: str) -> None:
            switch.on = mode in ("ours", "recompute", "each", "free")
            switch.steps += steps * switch.on
            if CHECKPOINTED & {*modes}:
                model = trainer.accelerator.unwrap_model(trainer.model)
                on, off = model.gradient_checkpointing_enable, model.gradient_checkpointing_disable
                on() if mode in CHECKPOINTED else off()
            if "free" in modes:
                without_padding(trainer, self.check().hooks, on=mode == "free")
            if "each" in modes:
                # accelerate looks here at every micro-step.
                trainer.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = mode == "each"

    return Blocks()


def without_padding(trainer: Any, hooks: list[Any], *, on: bool) -> None:
    """Turn the hooks on, or off, and then take TRL's attention, too."""
    from trl_trainer.padding_free.attention import NAME, OWN

    for hook in hooks:
        hook.is_on = on
    for model in (trainer.model, getattr(trainer, "ref_model", None)):
        if model is not None:
            plain = model.get_base_model() if hasattr(model, "get_base_model") else model
            plain.set_attn_implementation(NAME if on else OWN)


def black_hole() -> str:
    """Return a URL that accepts connections and never answers: reports must not cost more when nobody takes them."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(64)
    _open.append(server)
    return f"http://127.0.0.1:{server.getsockname()[1]}/status"


_open: list[socket.socket] = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", required=True, help="with as many steps as all blocks, and the same rows for a pair")
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps per block")
    parser.add_argument("--modes", nargs=2, choices=MODES, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    job = resolve(read_job(given.job))
    os.environ.update(library_settings(job), KUBEFLOW_TRAINER_SERVER_URL=black_hole())
    found = compare(job, given.modes, given.steps)
    if os.environ.get("RANK", "0") == "0":
        given.output.write_text(json.dumps(found))
    os._exit(0)


def compare(job: Any, modes: list[str], steps: int) -> dict[str, Any]:
    """Train to the end; return the samples of each mode, the losses and what our callbacks cost."""
    import torch

    from trl_trainer import rank, stages
    from trl_trainer.checkpoints import checkpoint, fence
    from trl_trainer.checkpoints.writer import Writer
    from trl_trainer.distributed import cpu_fsdp, world
    from trl_trainer.distributed.world import gather
    from trl_trainer.launch.watchdog import Watchdog
    from trl_trainer.models.tokenizer import load_tokenizer
    from trl_trainer.reports.progress import Reporter, Sender
    from trl_trainer.results import evaluation
    from trl_trainer.rewards import Rewards

    termination = Termination()
    cpu_fsdp.enable()
    run = world.start(job)
    fence.claim(run.work, job.attempt)
    saved = partial(checkpoint.newest_bytes, run.work)
    Watchdog(job.stall_timeout_seconds, saved, attempt=job.attempt, rank=run.rank, world=run.world).start()
    reporter = Reporter(job.attempt, run.work / "metrics.jsonl", Sender(os.environ if run.is_main else {}))
    tokenizer = load_tokenizer(job)
    rows, known = rank.load_data(run, stages.of(job), tokenizer, Rewards([]), reporter)
    is_free = "free" in modes
    bare = bare_losses(run, tokenizer, int(job.spec.training.max_steps) if is_free else 2 * steps)
    trainer = rank.build(run, stages.of(job), tokenizer, rows, Rewards([]), known.memory.sync_each_batch, reporter.warn)
    before = evaluation.Before(run, stages.of(job), trainer, tokenizer, [], rows.report.conversational)
    switch = Switch()
    blocks = blocks_callback(trainer, switch, modes, steps, sync_of(run.device))
    trainer.add_callback(blocks)
    if run.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rank.fit(run, trainer, before, reporter, termination, Writer())

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(set(losses)) > 1, f"the losses do not move: {losses}"
    differs, floor = difference(bare, losses[: len(bare)]), None
    allowed = [1e-6 + TOLERANCE[run.device] * abs(loss) for loss in bare]
    if is_free:
        same_rows(trainer.state.log_history, steps)
        assert len(bare) == len(losses), f"of {len(losses)} steps the bare trainer has logged {len(bare)}"
        if differs > FREE_TOLERANCE:
            floor = difference(bare, bare_losses(run, tokenizer, len(bare), pad_to_multiple_of=MORE_PADDING))
        allowed = [max(FREE_TOLERANCE, FLOORS * (floor or 0.0)) for _ in bare]
    same = all(abs(a - b) <= bound for a, b, bound in zip(bare, losses, allowed, strict=False))
    assert same, f"TRL's bare trainer differs by {differs} (floor {floor}): {bare}, {losses[: len(bare)]}"
    steps_with_ours = max(1, switch.steps)
    own = {
        "callbacks_ms": sum(switch.cpu.values()) / 1e6 / steps_with_ours,
        "threads_ms": 1000 * (blocks.threads[1] - blocks.threads[0]) / trainer.state.global_step,
    }
    found: dict[str, Any] = {
        "samples": over_ranks(run, blocks.samples[WARM_UP:]),
        "losses_differ_by": differs,
        "floor": floor,
        "losses_of_bare_trainer": bare,
        "losses": losses[: len(bare)],
        "own_cpu_per_step": gather(run, own),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "tokens_per_step": trainer.state.log_history[-2]["num_tokens"] / trainer.state.global_step,
        "callback_wall_us_per_step": {name: ns / 1000 / steps_with_ours for name, ns in switch.wall.items()},
        "callback_cpu_us_per_step": {name: ns / 1000 / steps_with_ours for name, ns in switch.cpu.items()},
    }
    if run.device == "cuda":
        found |= {"device": torch.cuda.get_device_name(), "peak_memory_bytes": torch.cuda.max_memory_allocated()}
    return found


def sync_of(device: str) -> Callable[[], None]:
    import torch

    return torch.cuda.synchronize if device == "cuda" else lambda: None


def difference(some: list[float], others: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(some, others, strict=True))


def same_rows(history: list[dict[str, float]], steps: int) -> None:
    """Make sure, by the numbers of tokens of each step, that both blocks of a pair had the same rows."""
    seen = [0.0, *(entry["num_tokens"] for entry in history if "loss" in entry)]
    each = [after - before for before, after in itertools.pairwise(seen)]
    for start in range(0, len(each) - 2 * steps + 1, 2 * steps):
        first, second = each[start : start + steps], each[start + steps : start + 2 * steps]
        assert first == second, f"a pair of blocks has other rows in one than in the other: {first}, {second} tokens"


def over_ranks(run: Any, samples: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Return the samples with the clock of this rank and the CPU seconds of all."""
    from trl_trainer.distributed.world import gather

    cpu = gather(run, [seconds for _, _, seconds in samples])
    return [(mode, wall, sum(each)) for (mode, wall, _), *each in zip(samples, *cpu, strict=True)]


def bare_losses(run: Any, tokenizer: Any, steps: int, **settings: Any) -> list[float]:
    """What TRL's trainer with the same config, and nothing of ours but that, logs in its first `steps` steps;
    `settings`: what its config has besides."""
    import plain
    from transformers import TrainerCallback
    from trl import DPOTrainer, RewardTrainer, SFTTrainer

    from trl_trainer import stages
    from trl_trainer.distributed import sharding
    from trl_trainer.models import adapter, source
    from trl_trainer.models.arguments import arguments

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= state.global_step >= steps

    stage = stages.of(run.job)
    config = arguments(run.job, stage, output_dir=str(run.work / "bare"), world=run.world, device=run.device)
    # Ours without padding has its own.
    config["model_init_kwargs"].pop("attn_implementation", None)
    args = stage.config(**config, **settings)
    # Plain TRL's own precision with several processes on GPUs is another.
    sharding.configure(args, run, sync_each_batch=False)
    kind = {"DPOJob": DPOTrainer, "RewardJob": RewardTrainer, "SFTJob": SFTTrainer}[run.job.kind]
    trainer = kind(
        model=source.path(run.job), args=args, train_dataset=plain.load(run.job), processing_class=tokenizer,
        peft_config=adapter.lora(run.job, stage.task_type, source.path(run.job)),
    )  # fmt: skip
    trainer.add_callback(Stop())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main()
