"""Makes a model of 100,000 parameters and rows for every stage in the folder given; runs in the trainer image."""

import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SEED = 7
QUESTIONS = ("where is my order", "cancel my plan", "refund this item", "reset the password", "change my address")
POLITE = ("thank you , we will gladly do that now", "of course , we have sent it to you", "happy to help , it is done")
CURT = ("no", "wait", "not my job", "ask someone else")
SPECIAL = ("<|pad|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def save_model(folder: Path) -> None:
    words = sorted({word for text in (*QUESTIONS, *POLITE, *CURT) for word in text.split()})
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", unk_token="<|unk|>", eos_token="<|end|>"
    )
    wrapped.chat_template = TEMPLATE
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=vocabulary["<|end|>"],
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)


def rows(count: int) -> dict[str, list[dict[str, object]]]:
    rng = random.Random(SEED)
    found: dict[str, list[dict[str, object]]] = {"pairs": [], "conversations": [], "prompts": []}
    for _ in range(count):
        prompt = [{"role": "user", "content": rng.choice(QUESTIONS)}]
        good = [{"role": "assistant", "content": rng.choice(POLITE)}]
        bad = [{"role": "assistant", "content": rng.choice(CURT)}]
        found["pairs"].append({"prompt": prompt, "chosen": good, "rejected": bad})
        found["conversations"].append({"messages": [*prompt, *good]})
        found["prompts"].append({"prompt": prompt, "answer": good[0]["content"]})
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    save_model(folder / "model")
    for name, found in rows(256).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
