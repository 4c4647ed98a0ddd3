"""How long training stands still for a checkpoint: ours, transformers' own, and torch's asynchronous one; one rank.

All three save the same sharded model and optimizer, in turn, at the same step.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_contract.resolve import resolve
from trl_trainer.launch.job import library_settings, read_job
from trl_trainer.launch.termination import Termination


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    job = resolve(read_job(given.job))
    os.environ.update(library_settings(job))
    found = measure(job, given.rounds)
    if os.environ.get("RANK", "0") == "0":
        given.output.write_text(json.dumps(found))
    os._exit(0)


def measure(job: Any, rounds: int) -> dict[str, Any]:
    """Train two steps, save `rounds` times in each way, and return the seconds of each."""
    from transformers import TrainerCallback

    from trl_trainer import rank, stages
    from trl_trainer.checkpoints import fence
    from trl_trainer.checkpoints.form import Form
    from trl_trainer.checkpoints.publisher import FiniteGuard, Publisher
    from trl_trainer.checkpoints.writer import Writer
    from trl_trainer.distributed import cpu_fsdp, world
    from trl_trainer.models.tokenizer import load_tokenizer
    from trl_trainer.reports.progress import Reporter, Sender
    from trl_trainer.rewards import Rewards

    Termination()
    cpu_fsdp.enable()
    run = world.start(job)
    fence.claim(run.work, job.attempt)
    reporter = Reporter(job.attempt, run.work / "metrics.jsonl", Sender({}))
    words = load_tokenizer(job)
    stage = stages.of(job)
    rows, known = rank.load_data(run, stage, words, Rewards([]), reporter)
    trainer = rank.build(run, stage, words, rows, Rewards([]), known.memory.sync_each_batch, reporter.warn)
    names = ("ours", "ours_durable", "transformers", "dcp_async", "dcp_durable")
    found: dict[str, Any] = {"seconds": {name: [] for name in names}}

    class AtStep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step < 2:
                return
            writer = Writer()
            publisher = Publisher(run, FiniteGuard(), reporter, writer)
            for _ in range(rounds):
                measure_round(run, trainer, publisher, writer, found["seconds"])
            found["bytes"] = sum(f.stat().st_size for f in run.work.rglob("checkpoint-2/**/*") if f.is_file())
            control.should_training_stop = True

    trainer.add_callback(Form(trainer, None))
    trainer.add_callback(AtStep())
    trainer.train()
    found["parameters"] = sum(p.numel() for p in trainer.model.parameters())
    return found


def measure_round(run: Any, trainer: Any, publisher: Any, writer: Any, seconds: dict[str, list[float]]) -> None:
    from trl_trainer.distributed.world import barrier

    folder = run.work / "checkpoint-2"

    def timed(name: str, call: Callable[[], Any]) -> Any:
        barrier(run)
        began = time.perf_counter()
        result = call()
        seconds[name].append(time.perf_counter() - began)
        return result

    def clear() -> None:
        barrier(run)
        if run.is_main:
            shutil.rmtree(folder, ignore_errors=True)
        barrier(run)

    def until_durable(name: str, call: Callable[[], Any], end: Callable[[Any], Any]) -> None:
        result = timed(name, call)
        began = time.perf_counter()
        end(result)
        seconds[name.replace("_async", "") + "_durable"].append(seconds[name][-1] + time.perf_counter() - began)

    def ours() -> None:
        with writer.takes_shards():
            trainer._save_checkpoint(trainer.model, trial=None)
        publisher.on_save(trainer.args, trainer.state, trainer.control)

    def transformers() -> None:
        config = trainer.accelerator.state.fsdp_plugin.state_dict_config
        ours, config.offload_to_cpu = config.offload_to_cpu, True
        trainer._save_checkpoint(trainer.model, trial=None)
        config.offload_to_cpu = ours

    clear()
    timed("transformers", transformers)
    clear()
    until_durable("dcp_async", lambda: dcp(trainer, folder), lambda future: future.result())
    clear()
    until_durable("ours", ours, lambda _: writer.wait())


def dcp(trainer: Any, folder: Path) -> Any:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optimizer = get_state_dict(trainer.model, trainer.optimizer.optimizer)
    return dcp.async_save({"model": model, "optimizer": optimizer}, checkpoint_id=str(folder))


if __name__ == "__main__":
    main()
