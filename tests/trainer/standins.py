"""Stand-ins of what examples/migration names on the hub, and its jobs on rows of their own, to explain them offline:

    python tests/trainer/standins.py DIR
    HF_HUB_OFFLINE=1 HF_HUB_CACHE=DIR/hub python -m trl_trainer explain DIR/open-r1-grpo-demo.yaml

A model is its config, in its real size, and a tokenizer of bytes with its special tokens; there are no weights. Rows
have the form of the data sets, and say nothing.
"""

import random
import sys
from pathlib import Path
from typing import Any

import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SmolLM3Config,
)

SEED = 20261126
ROWS, ROWS_OF_A_MIXTURE = 40, 24
JOBS = Path(__file__).parents[2] / "examples" / "migration"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n{% endif %}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def llama(**size: Any) -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=128256, num_key_value_heads=8, bos_token_id=0, eos_token_id=1, architectures=["LlamaForCausalLM"],
        **size,
    )  # fmt: skip


def configs() -> dict[tuple[str, str], tuple[PretrainedConfig, PreTrainedTokenizerFast]]:
    """Return config and tokenizer of each model, by repository and revision."""
    llama_8b = llama(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=131072,
    )  # fmt: skip
    llama_70b = llama(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        max_position_embeddings=8192,
    )  # fmt: skip
    mistral = MistralConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=32768, bos_token_id=1, eos_token_id=2,
        architectures=["MistralForCausalLM"],
    )  # fmt: skip
    smollm3 = SmolLM3Config(
        vocab_size=128256, hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
        num_key_value_heads=4, max_position_embeddings=65536, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=2, pad_token_id=0, architectures=["SmolLM3ForCausalLM"],
    )  # fmt: skip
    qwen = Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=2, architectures=["Qwen2ForCausalLM"],
    )  # fmt: skip
    plain = tokenizer(LLAMA_TOKENS, None, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
    chat = tokenizer(CHATML_TOKENS, CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    base = tokenizer(CHATML_TOKENS, None, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    zephyr = tokenizer(("<unk>", "<s>", "</s>"), ZEPHYR, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    return {
        ("NousResearch/Meta-Llama-3.1-8B", "main"): (llama_8b, plain),
        ("casperhansen/llama-3-70b-fp16", "main"): (llama_70b, plain),
        ("alignment-handbook/zephyr-7b-sft-full", "main"): (mistral, zephyr),
        ("HuggingFaceTB/SmolLM3-3B-checkpoints", "it-mid-training"): (smollm3, base),
        ("HuggingFaceTB/SmolLM3-3B-checkpoints", "it-SFT"): (smollm3, chat),
        ("Qwen/Qwen2.5-1.5B-Instruct", "main"): (qwen, chat),
    }


def tokenizer(special: tuple[str, ...], template: str | None, **tokens: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*special, *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    made.chat_template = template
    return made


def write_cache(cache: Path) -> None:
    """Write the models as huggingface_hub keeps what it has downloaded."""
    for number, ((repo, revision), (config, made)) in enumerate(configs().items()):
        folder, commit = cache / f"models--{repo.replace('/', '--')}", f"{number:040x}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
        config.save_pretrained(folder / "snapshots" / commit)
        made.save_pretrained(folder / "snapshots" / commit)


def rows(repo: str, number: int, rng: random.Random) -> list[dict[str, Any]]:
    """Return rows of the form that a data set has."""

    def said() -> str:
        return " ".join(rng.choice(("ba", "do", "fi", "ku", "me", "ro")) for _ in range(rng.randint(5, 40)))

    def talk() -> list[dict[str, str]]:
        return [{"role": "user", "content": said()}, {"role": "assistant", "content": said()}]

    def pair() -> dict[str, Any]:
        prompt = said()
        answers = {name: [{"role": "user", "content": prompt}, talk()[1]] for name in ("chosen", "rejected")}
        return {"prompt": prompt, **answers}

    makers = {
        "tatsu-lab/alpaca": lambda: {"instruction": said(), "input": "", "output": said(), "text": said()},
        "HuggingFaceH4/ultrafeedback_binarized": lambda: {**pair(), "score_chosen": 8.0, "score_rejected": 3.0},
        "HuggingFaceTB/smoltalk2": lambda: {
            "messages": talk(), **pair(), "chat_template_kwargs": {"enable_thinking": rng.random() < 0.5},
        },
        "open-r1/OpenR1-Math-220k": lambda: {"problem": said(), "solution": said(), "answer": "$x^2$"},
    }  # fmt: skip
    return [makers[repo]() for _ in range(number)]


def offline(job: dict[str, Any]) -> dict[str, Any]:
    """Return the job with rows of the same form in place of each data set of the hub."""
    rng, dataset = random.Random(SEED), job["spec"]["dataset"]
    single = [dataset[name] for name in ("train", "eval") if name in dataset]
    for source in [*single, *dataset.get("mixture", [])]:
        number = ROWS if source in single else ROWS_OF_A_MIXTURE
        source["inline"] = rows(source.pop("hub")["repo"], number, rng)
    return job


def main(folder: Path) -> None:
    write_cache(folder / "hub")
    for path in sorted(JOBS.glob("*.yaml")):
        job = offline(yaml.safe_load(path.read_text()))
        (folder / path.name).write_text(yaml.safe_dump(job, sort_keys=False, allow_unicode=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
