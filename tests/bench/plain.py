"""What one would write with TRL alone for the same job: the other side of the start-up comparison."""

import argparse
import time
from typing import Any

from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from trl_contract.resolve import resolve
from trl_trainer import stages
from trl_trainer.distributed import cpu_fsdp, world
from trl_trainer.launch.job import read_job
from trl_trainer.models import source
from trl_trainer.models.arguments import arguments
from trl_trainer.models.tokenizer import load_tokenizer


class FirstLog(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1 and state.is_world_process_zero:
            print(f"first log at {time.time()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", required=True)
    job = resolve(read_job(parser.parse_args().job))
    # accelerate alone would train DDP on CPU, which is another thing.
    cpu_fsdp.enable()
    run = world.start(job)
    tokenizer = load_tokenizer(job)
    train = load(job)
    config = arguments(job, stages.of(job), output_dir=f"{run.work}-plain", world=run.world, device=run.device)
    trainer = DPOTrainer(
        model=source.path(job), args=DPOConfig(**config), train_dataset=train, processing_class=tokenizer
    )
    trainer.add_callback(FirstLog())
    trainer.train()


def load(job: Any) -> Any:
    from datasets import load_dataset

    return load_dataset("json", data_files=job.paths.train, split="train")


if __name__ == "__main__":
    main()
