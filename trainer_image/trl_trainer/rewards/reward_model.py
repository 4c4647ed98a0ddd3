"""A reward model: a sequence classification model with one label, such as a RewardJob trains."""

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trl_trainer.distributed.precision import HALF
from trl_trainer.errors import UserError
from trl_trainer.launch.network import HUB, patiently
from trl_trainer.preflight import architecture
from trl_trainer.rewards.score import Batch, Score

MICRO_BATCH = 8


class RewardModelScorer:
    """Scores prompt and completion together, rendered as TRL's RewardTrainer renders them.

    It is loaded when it is made (before TRL's settings could make transformers load it empty on other ranks) and moves
    to the GPU at the first call. `where` is its folder or, with a revision, its repository on the hub; `field` names it
    in messages.
    """

    def __init__(self, where: str, field: str, precision: str | None, revision: str | None = None) -> None:
        config = architecture.classifier_config(where, revision, field)
        self._tokenizer = patiently(HUB, lambda: AutoTokenizer.from_pretrained(where, revision=revision))
        self._field = field
        kwargs = {"config": config, "dtype": HALF.get(precision or "", torch.float32), "use_safetensors": True}
        load = AutoModelForSequenceClassification.from_pretrained
        self._model = patiently(HUB, lambda: load(where, revision=revision, **kwargs))
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
        self._model.eval().requires_grad_(False)

    def __call__(self, batch: Batch) -> list[Score]:
        device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
        self._model.to(device)
        texts = [self._text(*pair) for pair in zip(batch.prompts, batch.completions, strict=True)]
        special = isinstance(batch.prompts[0], str)  # a chat template has put them in already
        scores: list[Score] = []
        for start in range(0, len(texts), MICRO_BATCH):
            inputs = self._tokenizer(
                texts[start : start + MICRO_BATCH],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                add_special_tokens=special,
            ).to(device)
            with torch.no_grad():
                scores += self._model(**inputs).logits[:, 0].float().tolist()
        return scores

    def _text(self, prompt: Any, completion: Any) -> str:
        if isinstance(prompt, str):
            text = prompt + completion
            eos = self._tokenizer.eos_token or ""
            return text if text.endswith(eos) else text + eos
        if not self._tokenizer.chat_template:
            raise UserError(
                "InvalidSpec", f"{self._field}: its tokenizer has no chat template, but the data are conversations"
            )
        return str(self._tokenizer.apply_chat_template(prompt + completion, tokenize=False))
