"""A trainer whose models compute without padding, and the last look at that: one small batch of each whole model, on
its device, in its precision, with its adapter and its checkpointing, before the first step."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_trainer.distributed import sharding
from trl_trainer.distributed.world import Run, gather
from trl_trainer.padding_free.compared import FLOORS, batch, derive, difference, gradient_difference, without_dropout
from trl_trainer.padding_free.hooks import PaddingFree
from trl_trainer.stage import Stage

BOUNDS = {torch.float32: (1e-4, 1e-3)}
"""By so much of their greatest value results and gradients may differ, by the precision of the arithmetic; or by
FLOORS times what they differ by with more padding alone, which may be the second number: of a model that differs by
more from itself it cannot be said what is equal."""
HALF_BOUND = 5e-2, 0.3
COMPARED = 2**16
"""Gradients of so many values at most, of one process, are compared: norms, biases, adapters. To keep the others twice
would be memory that training has no use for."""

Found = tuple[list[torch.Tensor], list[torch.Tensor]]
"""Results and gradients."""


class PaddingCheck(TrainerCallback):
    """Makes the models of a trainer, which have the attention of attention.py, compute without padding: the policy,
    below its adapter, and the reference beside it. To be made before the policy is sharded or prepared.

    When training begins both ways are compared, of each of them. Where they agree the hooks are turned on, on all
    ranks; else, also where one fails, `warn` is told. Weights, gradients and the random state are left as they were.
    """

    def __init__(self, run: Run, trainer: Trainer, stage: Stage, warn: Callable[[str], None]) -> None:
        self._run = run
        self._trainer = trainer
        self._is_classifier = stage.is_classifier
        self._left = stage.pads_both_sides
        self._warn = warn
        plain = [model.get_base_model() if isinstance(model, PeftModel) else model for model in self._models()]
        pairs = run.job.spec.sequences_per_row == 2
        self.hooks = [PaddingFree(model.base_model, pairs=pairs) for model in plain]
        # Until it is known that they may: a reference is asked before training begins, and its answers are kept.
        self._turn(on=False)

    def _models(self) -> list[Any]:
        """Return the policy and, if there is one beside it, the reference."""
        reference = getattr(self._trainer, "ref_model", None)
        return [self._trainer.model, *([] if reference is None else [reference])]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        own = self._found(0, is_on=False)
        floor = _differ(self._found(8, is_on=False), own)
        found, failed = 0.0, None
        try:
            found = _differ(self._found(0, is_on=True), own)
        except Exception as error:
            # A kernel that does not take this device, or these heads. Where ranks are sharded they all meet it, in the
            # same layer: what they share is a model and a kind of device.
            failed = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
            for model in self._models():
                sharding.forget_pass(model)
        why = refusal(gather(self._run, (found, floor, failed)), _arithmetic(args))
        if why is None:
            self._turn(on=True)
            if self._run.is_main:
                how = f"a batch differs by {found:.1e} of its size"
                print(f"training.paddingFree: padding is left out: {how}", flush=True)
            return
        self._warn(f"training.paddingFree: the run is padded: {why}")

    def _turn(self, *, on: bool) -> None:
        for hook in self.hooks:
            hook.is_on = on

    def _found(self, more: int, *, is_on: bool) -> Found:
        """Return what each model returns for each token, or sequence, and the policy's gradients that are compared."""
        policy, *references = self._models()
        was_training = policy.training
        policy.train()
        self._turn(on=is_on)
        try:
            with torch.no_grad():
                asked = [self._result(model, more) for model in references]
            with without_dropout(policy):
                result = self._result(policy, more)
                derive(result)
            return [result.detach(), *asked], _gradients(policy)
        finally:
            policy.zero_grad()
            policy.train(was_training)
            self._turn(on=False)

    def _result(self, model: Any, more: int) -> torch.Tensor:
        config = model.config.get_text_config()
        ids, mask = batch(config.vocab_size, config.pad_token_id, left=self._left)
        ids, mask = (nn.functional.pad(part, (0, more)).to(self._trainer.args.device) for part in (ids, mask))
        if self._is_classifier:
            logits: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            return logits.float()
        # The first token of a sequence is nobody's next one.
        labels = ids.masked_fill((mask == 0) | (nn.functional.pad(mask, (1, 0))[:, :-1] == 0), -100)
        found = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs
        result: torch.Tensor = found[:, : found.shape[1] - more].float()
        return result


def _gradients(model: nn.Module) -> list[torch.Tensor]:
    values = [value.grad for value in model.parameters() if value.grad is not None]
    local = [value.to_local() if isinstance(value, DTensor) else value for value in values]
    return [part.float().clone() for part in local if 0 < part.numel() <= COMPARED]


def refusal(ranks: Sequence[tuple[float, float, str | None]], arithmetic: torch.dtype) -> str | None:
    """Return why not to compute without padding; None if the ranks agree that they may.

    ranks: of each by how much it differs without padding, and with more of it, and how it failed without.
    """
    bound, most = BOUNDS.get(arithmetic, HALF_BOUND)
    failed = [failure for _, _, failure in ranks if failure is not None]
    if failed:
        return f"without, a batch fails: {failed[0]}"
    floor = max(floor for _, floor, _ in ranks)
    if floor > most:
        return f"with more padding a batch differs by {floor:.1e} of its size: is the model random while it trains?"
    found, bound = max(found for found, _, _ in ranks), max(bound, FLOORS * floor)
    return f"without, a batch differs by {found:.1e} of its size, and may by {bound:.1e}" if found > bound else None


def _differ(found: Found, other: Found) -> float:
    results = [difference(result, its) for result, its in zip(found[0], other[0], strict=True)]
    return max(*results, gradient_difference(found[1], other[1]))


def _arithmetic(args: TrainingArguments) -> torch.dtype:
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
