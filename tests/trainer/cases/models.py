"""Tiny models with the oddities of real ones, by name; each takes a tenth of a second."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SPECIAL = ("<|pad|>", "<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = len(SPECIAL) + 256

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\ntools: {% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content %}{{ m.content }}{% endif %}{% if m.tool_calls %}"
    "{% for c in m.tool_calls %}{% set c = c.function if c.function else c %}<tool>{{ c.name }}("
    "{% for k, v in c.arguments | items %}{{ k }}={{ v }} {% endfor %})</tool>{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As DeepSeek's: arguments are joined to text.
TEXT_TOOLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "{{ '<tool>' + c.function.name + c.function.arguments }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's: the answer to the last question gets an empty thought, earlier ones do not.
THINK = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Renders nothing unless it is told not to think.
SWITCH = "{% if enable_thinking is not defined or enable_thinking %}{{ raise_exception('it thinks') }}{% endif %}"
END_OUTSIDE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END_INSIDE = END_OUTSIDE.replace("{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n",
    "<|im_end|>{% endgeneration %}\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}")  # fmt: skip

ENDS = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}


def tokenizer(template: str | None = CHATML, *, around: str = "$A", **tokens: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[("<|bos|>", 1), ("<|im_end|>", 4)]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **(tokens or ENDS))
    made.chat_template = template
    return made


WIDTHS = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip


def qwen(tied: bool = True, end: int = 4) -> Any:
    return Qwen3ForCausalLM(
        Qwen3Config(**WIDTHS, head_dim=8, tie_word_embeddings=tied, eos_token_id=end, bos_token_id=None)
    )


def gpt2() -> Any:
    config = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    return GPT2LMHeadModel(GPT2Config(**config, bos_token_id=2, eos_token_id=2))


def gpt_oss() -> Any:
    return GptOssForCausalLM(
        GptOssConfig(**WIDTHS, head_dim=8, num_local_experts=4, num_experts_per_tok=2, eos_token_id=4)
    )


def qwen_moe() -> Any:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**WIDTHS, **experts, head_dim=8, eos_token_id=4))


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**WIDTHS, bos_token_id=1, eos_token_id=4))


def phi() -> Any:
    return PhiForCausalLM(PhiConfig(**WIDTHS, bos_token_id=None, eos_token_id=4))


OTHER_END = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
MODELS = {
    "base": lambda: (qwen(), tokenizer()),
    "untied": lambda: (qwen(tied=False), tokenizer()),
    "eosother": lambda: (qwen(end=2), tokenizer(eos_token="<|endoftext|>", pad_token="<|endoftext|>")),
    "noend": lambda: (qwen(end=2), tokenizer(NO_END, **OTHER_END)),
    "llama": lambda: (llama(), tokenizer("{{ bos_token }}" + CHATML, around="<|bos|> $A", bos_token="<|bos|>", **ENDS)),
    "addeos": lambda: (qwen(), tokenizer(around="$A <|im_end|>")),
    "tools": lambda: (qwen(), tokenizer(TOOLS)),
    "texttools": lambda: (qwen(), tokenizer(TEXT_TOOLS)),
    "think": lambda: (qwen(), tokenizer(THINK)),
    "switch": lambda: (qwen(), tokenizer(SWITCH + CHATML)),
    "genout": lambda: (qwen(), tokenizer(END_OUTSIDE)),
    "genin": lambda: (qwen(), tokenizer(END_INSIDE)),
    "gpt2": lambda: (gpt2(), tokenizer(None, eos_token="<|endoftext|>", bos_token="<|endoftext|>")),
    "gptoss": lambda: (gpt_oss(), tokenizer()),
    # Its head has a bias.
    "phi": lambda: (phi(), tokenizer()),
    "qwenmoe": lambda: (qwen_moe(), tokenizer()),
}


def make(folder: Path, name: str) -> None:
    """Write the model `name` below `folder`."""
    if name == "nan":
        make(folder, "base")
        shutil.copytree(folder / "base", folder / name)
        path = folder / name / "model.safetensors"
        weights = load_file(path)
        weights["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("nan")
        save_file(weights, path, {"format": "pt"})
    elif name == "bnb4":
        make(folder, "base")
        shutil.copytree(folder / "base", folder / name)
        path = folder / name / "config.json"
        stored = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": stored}))
    else:
        torch.manual_seed(1)
        model, words = MODELS[name]()
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
