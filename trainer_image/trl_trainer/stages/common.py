"""What TRL's trainers of several kinds are given alike."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_contract.jobfile import JobFile
from trl_contract.spec import SequenceSpec
from trl_trainer.data import Data
from trl_trainer.distributed.world import Run
from trl_trainer.models import adapter, base
from trl_trainer.stage import Stage


def settings(job: JobFile[SequenceSpec]) -> dict[str, Any]:
    """Return the settings that the kinds have in common whose rows are sequences of a given length. Pure."""
    return {
        "max_length": job.spec.max_length,
        "activation_offloading": job.spec.activation_offloading,
        "train_sampling_strategy": "random" if job.spec.dataset.shuffle else "sequential",
    }


def arguments(run: Run, stage: Stage, args: Any, tokenizer: PreTrainedTokenizerBase, data: Data) -> dict[str, Any]:
    """Return the keyword arguments of a stage's trainer that all kinds have; the model is loaded."""
    model = base.trained(run, stage, args)
    return {
        "model": model,
        "args": args,
        "train_dataset": data.train,
        "eval_dataset": data.eval,
        "processing_class": tokenizer,
        # For a classifier peft trains and saves the new head beside the adapter.
        "peft_config": adapter.lora(run.job, stage.task_type, model),
        "quantization_config": base.quantization(run),
    }
