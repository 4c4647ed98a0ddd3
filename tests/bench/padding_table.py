"""`make padding-table`: what the guard of padding_free says of each architecture; writes docs/padding-free.md."""

import sys
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, logging

from trl_trainer.padding_free import guard

KINDS = (
    "llama", "mistral", "ministral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma3_text", 
    "phi", "phi3", "olmo", "olmo2", "olmo3", "olmoe", "smollm3", "granite", "cohere", "cohere2", "glm4", "starcoder2",
    "deepseek_v3", "gpt2", "gpt_neox", "opt", "gemma2", "gpt_oss", "llama4_text", "qwen3_5_text", "falcon_h1", "mamba2",
    "bloom", "stablelm",
)  # fmt: skip
HEAD = """# Architectures without padding
`make padding-table` writes this page: what the guard of `trl_trainer/padding_free` says of each architecture's default
config, for pairs (dpo, reward), and for batches with padding on both sides and the dropout of the config (grpo; sft is
a part of that). A job's own config is asked when it starts, and by `explain`.
[performance.md](performance.md#without-padding) says what is compared.

| architecture | dpo, reward | sft, grpo |
|---|---|---|
"""


def main() -> None:
    logging.set_verbosity_error()
    lines = [f"| {kind} | {verdict(kind, pairs=True)} | {verdict(kind, pairs=False)} |" for kind in KINDS]
    Path(sys.argv[1]).write_text(HEAD + "\n".join(lines) + "\n")


def verdict(kind: str, *, pairs: bool) -> str:
    config: Any = CONFIG_MAPPING[kind]()
    found = guard.refusal(config, pairs=pairs, left=not pairs, drops=not pairs)
    return "without padding" if found is None else f"padded: {found.partition(': ')[2] or found}"


if __name__ == "__main__":
    main()
