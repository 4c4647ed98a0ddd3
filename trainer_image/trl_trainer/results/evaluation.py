"""What the model is worth before and after training, measured alike, on the held-out rows."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_contract.evaluation import MAX_ANSWER_TOKENS
from trl_contract.jobfile import JobFile
from trl_trainer.data import template
from trl_trainer.distributed.world import Run, broadcast
from trl_trainer.errors import UserError
from trl_trainer.files import write_whole
from trl_trainer.launch import watchdog
from trl_trainer.stage import Stage


def measure(stage: Stage, trainer: Trainer) -> dict[str, float]:
    """Return TRL's evaluation metrics (without `eval_`), and the kind's own before them. All ranks call it.

    The random state is left as it was, so that a run that evaluates and one that does not see the same batches.
    """
    if trainer.eval_dataset is None:
        return {}
    with same_random_state():
        found = trainer.evaluate()
        metrics = {name.removeprefix("eval_"): value for name, value in found.items() if isinstance(value, int | float)}
        return {**{name: own(trainer) for name, own in stage.measures.items()}, **metrics}


def check(job: JobFile, metrics: dict[str, float]) -> None:
    """Raise UserError if the trained model, which has these metrics, is not as good as the job asks for."""
    # As a status tells it: 0.9 as float32 is a little less, and that is no reason. NaN is not enough.
    least, accuracy = job.spec.least_accuracy, float(f"{metrics.get('accuracy', 0.0):.6g}")
    if least is not None and not accuracy >= least:
        raise UserError(
            "RewardModelNotValidated",
            f"reward.minAccuracy: the model has accuracy {accuracy:g} on its held-out pairs, and {least:g} is wanted:"
            " train on more or better pairs, or longer (checkpoint.resumeFrom goes on from here), or lower it",
        )


def preference_accuracy(trainer: Trainer) -> float:
    """Return the share of held-out pairs with sum log p(chosen) > sum log p(rejected), of the model itself.

    TRL's rewards/accuracies compare with the reference, so any base model scores 0 there.
    """
    model, accelerator = trainer.model, trainer.accelerator
    was_training = model.training
    model.eval()
    wins: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in trainer.get_eval_dataloader():
            chosen, rejected = completion_logps(model, batch).chunk(2)
            wins.append(accelerator.gather_for_metrics((chosen > rejected).float()))
            watchdog.beat()
    model.train(was_training)
    return float(torch.cat(wins).mean())


def completion_logps(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return sum log p(completion | prompt) for each row of a preference batch: shape (2 x pairs,), fp32.

    By the head that DPOTrainer puts on its models for its own loss: it makes no logits of a whole batch, which over a
    large vocabulary would not fit beside the training state.
    """
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    found: torch.Tensor = model(**inputs, labels=labels, fused_lm_head=True).log_probs
    return found.float().sum(dim=1)


def answers(run: Run, trainer: Trainer, tokenizer: Any, prompts: list[str], conversational: bool) -> list[str]:
    """Return the model's greedy answer to each prompt. All ranks call it with the same prompts."""
    model = trainer.model
    was_training = model.training
    model.eval()
    found = []
    for prompt in prompts:
        asked = template.asked(tokenizer, prompt, run.job.spec.dataset, conversational=conversational)
        inputs = torch.tensor([asked], device=model.device)
        with torch.no_grad():
            output = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=MAX_ANSWER_TOKENS,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
                # Every forward pass gathers the shards from all ranks: nobody may stop early.
                synced_gpus=run.world > 1,
            )
        watchdog.beat()
        found.append(tokenizer.decode(output[0, len(asked) :], skip_special_tokens=True))
    model.train(was_training)
    return found


@contextmanager
def same_random_state() -> Iterator[None]:
    """Leave the random state as it was, whatever is done inside."""
    python, array = random.getstate(), numpy.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
    random.setstate(python)
    numpy.random.set_state(array)


class Before(TrainerCallback):
    """Measures the base model once per job, when it is sharded and before the first step."""

    def __init__(
        self, run: Run, stage: Stage, trainer: Trainer, tokenizer: Any, prompts: list[str], conversational: bool
    ) -> None:
        self._run = run
        self._stage = stage
        self._trainer = trainer
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._conversational = conversational
        self._path = run.work / "before.json"
        self._at_start: bool = run.job.spec.evaluation.at_start
        self.metrics: dict[str, float] = {}
        self.answers: list[str] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        found = broadcast(self._run, lambda: _recall(self._path))
        if found is None and state.global_step == 0:
            with same_random_state():
                found = {
                    "metrics": measure(self._stage, self._trainer) if self._at_start else {},
                    "answers": answers(self._run, self._trainer, self._tokenizer, self._prompts, self._conversational),
                }
            if self._run.is_main:
                _remember(self._path, found)
        if found is not None:
            self.metrics, self.answers = found["metrics"], found["answers"]


def _remember(path: Path, found: dict[str, Any]) -> None:
    """Store `found`, whole or not at all: a later attempt must not measure a trained model in its place."""
    write_whole(path, json.dumps(found, indent=1))


def _recall(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None
