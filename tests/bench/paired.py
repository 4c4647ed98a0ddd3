"""Ours and plain TRL in one process, block by block, on the same rows: one rank of the comparison.

Both trainers live in threads of their own that hand a baton to each other, so exactly one of them works at a time. Ours
is what rank.py builds and fits, callbacks, pacing, reports and all; the other one is a bare DPOTrainer with the same
config. Block i of both has the same batches, and the losses must come out equal.
"""

import argparse
import json
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_contract.resolve import resolve
from trl_trainer.supervisor import library_settings, read_job
from trl_trainer.termination import Termination

EVENTS = (
    "on_epoch_begin", "on_step_begin", "on_pre_optimizer_step", "on_optimizer_step",
    "on_substep_end", "on_step_end", "on_log",
)  # fmt: skip

TOLERANCE = {"cpu": 1e-6, "cuda": 2e-2}
"""Relative: bf16 kernels on a GPU add in any order."""


class Baton:
    """Says whose turn it is; an error in one thread ends the others."""

    def __init__(self, order: list[str]) -> None:
        self._order = order
        self._turn = 0
        self._changed = threading.Condition()
        self.error: BaseException | None = None

    def acquire(self, name: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.error is not None or self._order[self._turn] == name)
            if self.error is not None:
                raise RuntimeError("the other trainer failed")

    def pass_on(self) -> None:
        with self._changed:
            self._turn += 1
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()


def order(pairs: int) -> list[str]:
    """A warm-up pair, `pairs` that count, and one in which both come to their end; who begins alternates."""
    return [name for i in range(pairs + 2) for name in (("plain", "ours") if i % 2 == 0 else ("ours", "plain"))]


def blocks_callback(name: str, baton: Baton, steps: int, sync: Callable[[], None]) -> Any:
    """Return a callback that notes the seconds and the CPU seconds of each block and hands the baton over after it."""
    from transformers import TrainerCallback

    class Blocks(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.cpu_seconds: list[float] = []
            self.began = (0.0, 0.0)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps or state.global_step == state.max_steps:
                return
            sync()
            self.seconds.append(time.perf_counter() - self.began[0])
            self.cpu_seconds.append(time.process_time() - self.began[1])
            baton.pass_on()
            baton.acquire(name)
            self.began = (time.perf_counter(), time.process_time())

    return Blocks()


class Costs:
    """Wall and CPU nanoseconds that our callbacks take, by their class."""

    def __init__(self) -> None:
        self.wall: dict[str, int] = defaultdict(int)
        self.cpu: dict[str, int] = defaultdict(int)

    def watch(self, callbacks: list[Any]) -> None:
        for callback in callbacks:
            if type(callback).__module__.startswith("trl_trainer"):
                for event in EVENTS:
                    setattr(callback, event, self._timed(type(callback).__name__, getattr(callback, event)))

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
            try:
                return call(*args, **kwargs)
            finally:
                self.wall[name] += time.perf_counter_ns() - wall
                self.cpu[name] += time.thread_time_ns() - cpu

        return timed


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
    parser.add_argument("--job", required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps per block")
    parser.add_argument("--plain", type=json.loads, default={}, help="what plain TRL's config has otherwise, as JSON")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    job = resolve(read_job(given.job))
    os.environ.update(library_settings(job), KUBEFLOW_TRAINER_SERVER_URL=black_hole())
    found = compare(job, given.pairs, given.steps, given.plain)
    if os.environ.get("RANK", "0") == "0":
        given.output.write_text(json.dumps(found))
    os._exit(0)


def compare(job: Any, pairs: int, steps: int, otherwise: dict[str, Any]) -> dict[str, Any]:
    """Train both to their end and return the seconds of each block, the losses and what our callbacks cost."""
    import torch
    from trl import DPOConfig, DPOTrainer

    from trl_trainer import cpu_fsdp, evaluation, fence, model, rank, world
    from trl_trainer.progress import Reporter, Sender
    from trl_trainer.rewards import Rewards
    from trl_trainer.stages import dpo

    termination = Termination()
    cpu_fsdp.enable()
    run = world.start(job)
    fence.claim(run.work, job.attempt)
    reporter = Reporter(job.attempt, run.work / "metrics.jsonl", Sender(os.environ if run.is_main else {}))
    tokenizer = model.tokenizer(job)
    rows = rank.load_data(run, tokenizer, Rewards([]), reporter)
    ours = rank.build(run, tokenizer, rows, Rewards([]))
    config = dpo.config(job, output_dir=str(run.work / "plain"), world=run.world, device=run.device,
                        gradient_checkpointing=model.gradient_checkpointing(job))  # fmt: skip
    plain = DPOTrainer(
        model=model.path(job),
        args=DPOConfig(**{**config, **otherwise}),
        train_dataset=rows.train,
        processing_class=tokenizer,
    )
    before = evaluation.Before(run, ours, tokenizer, [], rows.report.conversational)
    sync = torch.cuda.synchronize if run.device == "cuda" else (lambda: None)
    baton, costs = Baton(order(pairs)), Costs()
    callbacks = {name: blocks_callback(name, baton, steps, sync) for name in ("plain", "ours")}
    callbacks["ours"].on_train_begin = lambda *_, **__: costs.watch(ours.callback_handler.callbacks)
    plain.add_callback(callbacks["plain"])
    ours.add_callback(callbacks["ours"])
    works = {"plain": plain.train, "ours": lambda: rank.fit(run, ours, before, reporter, termination)}

    def work(name: str) -> None:
        try:
            baton.acquire(name)
            works[name]()
            baton.pass_on()
        except BaseException as error:
            baton.fail(error)
            raise

    threads = [threading.Thread(target=work, args=(name,), name=name) for name in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if baton.error is not None:
        raise SystemExit(1)
    return report(callbacks, {"plain": plain, "ours": ours}, costs, run, pairs, steps)


def report(
    callbacks: dict[str, Any], trainers: dict[str, Any], costs: Costs, run: Any, pairs: int, steps: int
) -> dict[str, Any]:
    import torch

    losses = {
        name: [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        for name, trainer in trainers.items()
    }
    assert len(set(losses["ours"])) > 1, f"the losses do not move: {losses['ours']}"
    # Ours logs at the last step too, whatever loggingSteps is.
    pairs_of = list(zip(*losses.values(), strict=False))
    assert all(abs(a - b) <= 1e-6 + TOLERANCE[run.device] * abs(a) for a, b in pairs_of), f"losses differ: {pairs_of}"
    total = steps * (pairs + 2)
    tokens = [entry["num_tokens"] for entry in trainers["ours"].state.log_history if "loss" in entry][-1]
    found: dict[str, Any] = {
        # The first block of each is warm-up.
        "seconds": {name: callback.seconds[1:] for name, callback in callbacks.items()},
        "cpu_seconds": {name: callback.cpu_seconds[1:] for name, callback in callbacks.items()},
        "losses": losses,
        "parameters": sum(p.numel() for p in trainers["ours"].model.parameters()),
        "tokens_per_step": tokens / total,
        "callback_wall_us_per_step": {name: ns / 1000 / total for name, ns in costs.wall.items()},
        "callback_cpu_us_per_step": {name: ns / 1000 / total for name, ns in costs.cpu.items()},
    }
    if run.device == "cuda":
        found |= {"device": torch.cuda.get_device_name(), "peak_memory_bytes": torch.cuda.max_memory_allocated()}
    return found


if __name__ == "__main__":
    main()
