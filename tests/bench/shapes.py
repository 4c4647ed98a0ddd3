"""Models with random weights, and preference pairs with realistic lengths: made here, from seeds, no downloads."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 7
WORDS = 1000


@dataclass(frozen=True)
class Shape:
    """A model, and the medians of its rows' lengths in tokens (log-normal: real prompts spread more than answers; not
    `even`: all equal)."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    prompt: int
    completion: int
    batch: int
    max_length: int
    even: bool = False


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 1024, 8, 12, 4, 64),
    "small": Shape(128, 512, 4, 4, 2048, 12, 24, 4, 128),
    "checkpoint": Shape(384, 1536, 6, 6, 2048, 8, 12, 2, 64),
    # About 400 MB in fp32.
    "host": Shape(1024, 4096, 6, 8, 4096, 8, 12, 1, 64),
    # UltraFeedback's lengths halved.
    "speed": Shape(256, 1024, 4, 4, 2048, 55, 130, 8, 512),
    # The shapes of Qwen2.5, lengths as in UltraFeedback.
    "0.5b": Shape(896, 4864, 24, 14, 151936, 110, 260, 8, 1024),
    "1.5b": Shape(1536, 8960, 28, 12, 151936, 110, 260, 8, 1024),
}


def make_model(folder: Path, shape: Shape) -> Path:
    """Write a Qwen3 model of `shape` with a word-level tokenizer and return its folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<end>", *(f"w{i}" for i in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = Qwen3Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=2,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=2048, tie_word_embeddings=True, pad_token_id=0, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(SEED)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    ).save_pretrained(folder)
    return folder


def make_rows(path: Path, shape: Shape, count: int, kind: str = "DPOJob", twice: int = 0) -> Path:
    """Write `count` rows of random words, without prompts where their median is 0; `twice`: each so many of them come
    two times in turn."""
    rng = random.Random(SEED)
    # RewardTrainer drops pairs that are longer than max_length with their end token; the others cut.
    most = shape.max_length // 2 - (kind == "RewardJob")

    def text(median: int, sigma: float) -> str:
        spread = 1.0 if shape.even else rng.lognormvariate(0, sigma)
        length = max(2, min(most, round(median * spread)))
        return " ".join(f"w{rng.randrange(WORDS)}" for _ in range(length))

    def row() -> dict[str, str]:
        prompt = {"prompt": text(shape.prompt, 1.0)} if shape.prompt else {}
        answers = ("completion",) if kind == "SFTJob" else ("chosen", "rejected")
        return prompt | {name: " " + text(shape.completion, 0.6) for name in answers}

    rows = [json.dumps(row()) + "\n" for _ in range(count)]
    if twice:
        rows = [line for start in range(0, count, twice) for line in 2 * rows[start : start + twice]]
    path.write_text("".join(rows))
    return path


def make_job(
    folder: Path, shape: Shape, *, world: int, gpus: bool, steps: int, rows: int, accumulate: int = 1,
    kind: str = "DPOJob", twice: int = 0, **sections: Any,
) -> Path:  # fmt: skip
    """Write model, rows and a job file for full fine-tuning into `folder` and return the job file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    model, train = make_model(folder / "model", shape), make_rows(folder / "train.jsonl", shape, rows, kind, twice)
    spec = {
        "model": {"volume": {"claimName": "models", "path": "model"}},
        "dataset": {"train": {"volume": {"claimName": "data", "path": "train.jsonl"}}, "evalSplit": 0,
                    "shuffle": False},
        "training": {
            "maxSteps": steps, "perDeviceBatchSize": shape.batch, "gradientAccumulationSteps": accumulate,
            "learningRate": 1e-5, "maxLength": shape.max_length, "gradientCheckpointing": False,
            "paddingFree": "never",
        },
        "peft": {"method": "none"},
        "evaluation": {"enabled": False},
        **sections,
    }  # fmt: skip
    job = {
        "contractVersion": 1, "kind": kind, "namespace": "bench", "name": "bench", "uid": "bench",
        "numNodes": 1, "numProcPerNode": world, "hasGpus": gpus, "spec": spec,
        "paths": {"storage": str(folder / "storage"), "model": str(model), "train": str(train)},
    }  # fmt: skip
    (folder / "storage").mkdir(exist_ok=True)
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return path
