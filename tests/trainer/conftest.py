"""A tiny model, tiny data sets and job files for the trainer's tests; everything is made here, from seeds."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

SEED = 7
PROMPTS = ("where is my order", "cancel my plan", "refund this item", "reset the password", "change my address")
POLITE = ("thank you , we will gladly do that now", "of course , we have sent it to you", "happy to help , it is done")
CURT = ("no", "wait", "not my job", "ask someone else")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 model of about 100,000 parameters with a word-level tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    special = ["<|pad|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    words = sorted({word for text in (*PROMPTS, *POLITE, *CURT) for word in text.split()})
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", unk_token="<|unk|>", eos_token="<|end|>"
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=256,
        tie_word_embeddings=True, pad_token_id=0, eos_token_id=vocabulary["<|end|>"], bos_token_id=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def preference_pairs(count: int, seed: int = SEED) -> list[dict[str, Any]]:
    """Return conversational preference pairs: polite replies chosen, curt ones rejected."""
    rng = random.Random(seed)
    return [
        {
            "prompt": [{"role": "user", "content": rng.choice(PROMPTS)}],
            "chosen": [{"role": "assistant", "content": rng.choice(POLITE)}],
            "rejected": [{"role": "assistant", "content": rng.choice(CURT)}],
        }
        for _ in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
