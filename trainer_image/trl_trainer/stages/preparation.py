"""TRL's own preparation of rows, run apart from its trainers: the one place that knows its private `_prepare_dataset`.

TRL tokenizes while it builds a trainer: in one process, in each attempt anew unless a cache is found, and while all
other ranks wait in a barrier. Ours calls the very same method before, on parts of the rows, in processes of their own,
and the trainers take what it made. tests/trainer/test_tokenizing.py compares both on rows of every form.
"""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from trl_contract.jobfile import JobFile
from trl_trainer.data import Tokenize
from trl_trainer.models import arguments
from trl_trainer.stage import Row, Stage


class TakesPreparedRows:
    """Before a TRL trainer in the order of classes: it trains on rows that `prepare` has made, as they are.

    SFTTrainer and RewardTrainer would cut and filter them once more, and DPOTrainer tokenize them once more.
    """

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def prepare(
    trainer: Any,
    rows: Any,
    tokenizer: PreTrainedTokenizerBase,
    args: Any,
    attributes: dict[str, Any] | None = None,
    **more: Any,
) -> Any:
    """Return `rows` as `trainer` prepares them; `attributes` are those of the trainer that its method reads, `more`
    its arguments beside those that all kinds have."""
    stand_in = SimpleNamespace(_tokenizer=tokenizer, **(attributes or {}))
    return trainer._prepare_dataset(stand_in, rows, _Ids(tokenizer), args, dataset_name="train", **more)


def tokenizing(job: JobFile, stage: Stage, tokenizer: PreTrainedTokenizerBase) -> Tokenize:
    """Return the function that tokenizes rows as TRL does. It is for processes that do nothing else."""

    def tokenize(rows: Any, split: str) -> Iterator[Row]:
        _alone()
        args = arguments.arguments(job, stage, output_dir="unused", world=1, device="cpu")
        return iter(stage.tokenize(job, stage.config(**args), tokenizer, rows, split))

    return tokenize


def _alone() -> None:
    """Forget the other ranks: TRL would meet them at a barrier that they never come to."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    assert PartialState(cpu=True).num_processes == 1, "forked before accelerate knew of other ranks"


CACHED_WORDS = 200_000
"""Words whose tokens a process remembers: those of a large data set, in about 30 MB."""


class _Ids:
    """A tokenizer for TRL's preparation alone: equal ids in two thirds of the time, as it makes no masks and offsets,
    which nobody reads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # Sets the backend's padding, cutting and handling of special tokens to what the tokenizer says.
        tokenizer("")
        _remember_words(tokenizer)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self._encode(text, add_special_tokens=True)}

    def apply_chat_template(self, messages: Any, tokenize: bool, return_dict: bool, **given: Any) -> Any:
        if given.pop("return_assistant_tokens_mask", False):
            return self._tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **given
            )
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, **given)
        return {"input_ids": self._encode(text, add_special_tokens=False)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if not self._tokenizer.is_fast:
            return self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return self._tokenizer.backend_tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids


def _remember_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Have the model remember more words than the first 10,000, which are those that a part of the rows begins with:
    a fifth less time. Private to the bindings of tokenizers, whose public way is to build the whole tokenizer anew."""
    resize = getattr(tokenizer.backend_tokenizer.model, "_resize_cache", None) if tokenizer.is_fast else None
    if resize is not None:
        resize(CACHED_WORDS)
