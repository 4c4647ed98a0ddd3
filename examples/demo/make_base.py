"""Makes the demo's base model: 1.3 million parameters of Qwen3 with a tokenizer of its own, trained from scratch.

    python make_base.py FOLDER     writes model/, train.jsonl and eval.jsonl into FOLDER/<hash of these scripts>

FOLDER/base links to it. What is there already is kept: the folder appears under its name only when it is complete.
The model has read good agents and bad ones, so it writes well and is curt more often than helpful: DPO changes that.
The number of steps is fixed, never the time, so that every machine makes an equally good model.
"""

import hashlib
import itertools
import math
import os
import random
import shutil
import sys
import time
from pathlib import Path

import data

STEPS = 1300
ROWS_PER_STEP = 8
LEARNING_RATE = 8e-3
MOMENTUM = 0.95
WARMUP_STEPS = 10
VOCABULARY = 1024
SEED = 7
# What the model is a function of.
SCRIPTS = ("data.py", "make_base.py", "phrases.yaml")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def scripts_hash() -> str:
    """Return the name of the folder that the scripts beside this one make."""
    digest = hashlib.sha256()
    for name in SCRIPTS:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:12]


def make_tokenizer(texts):
    """Return a byte-level BPE tokenizer trained on the texts, with a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Regex(r"\p{N}{1,3}| ?[\p{L}']+| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=1024
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_model(tokenizer):
    """Return an untrained model for the tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=40,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def make_optimizers(model):
    """Return Muon for the matrices and AdamW for the rest: a third fewer steps than AdamW alone needs here."""
    import torch

    class Muon(torch.optim.Optimizer):
        """torch.optim.Muon with match_rms_adamw, in fp32: torch's multiplies in bfloat16, for which many CPUs have no
        instructions, and takes ten times as long there."""

        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for parameter in group["params"]:
                    momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                    momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                    update = orthogonal(parameter.grad.lerp(momentum, MOMENTUM))
                    rate = group["lr"] * 0.2 * math.sqrt(max(parameter.shape))
                    parameter.mul_(1 - group["lr"] * 0.01).add_(update, alpha=-rate)

    named = list(model.named_parameters())
    matrices = [parameter for name, parameter in named if parameter.ndim == 2 and "embed" not in name]
    others = [parameter for name, parameter in named if parameter.ndim != 2 or "embed" in name]
    return [Muon(matrices, {}), torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)]


def orthogonal(matrix):
    """Return about the nearest matrix with orthogonal rows or columns (Newton-Schulz with the coefficients of Muon)."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    found = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        square = found @ found.T
        found = 3.4445 * found + (-4.775 * square + 2.0315 * square @ square) @ found
    return found.T if matrix.shape[0] > matrix.shape[1] else found


def learning_rate(step: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return LEARNING_RATE * warm * (0.05 + 0.95 * (1 + math.cos(math.pi * step / STEPS)) / 2)


def make_batches(texts: list[str]) -> list[list[str]]:
    """Put texts of like length into one batch, so that little is padding, and shuffle the batches."""
    texts = sorted(texts, key=len)
    batches = [texts[i : i + ROWS_PER_STEP] for i in range(0, len(texts), ROWS_PER_STEP)]
    random.Random(SEED).shuffle(batches)
    return batches


def train(model, tokenizer, texts: list[str]) -> None:
    """Train for STEPS steps, printing progress."""
    import torch

    optimizers, start = make_optimizers(model), time.monotonic()
    model.train()
    for step, batch in enumerate(make_batches(texts), start=1):
        inputs = tokenizer(batch, return_tensors="pt", padding=True)
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step - 1)
            optimizer.step()
            optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step}/{STEPS}  loss {loss.item():.3f}  {time.monotonic() - start:.0f} s", flush=True)


def make(folder: Path) -> None:
    """Write the data and the model into `folder`."""
    import transformers

    transformers.set_seed(SEED)
    data.write(folder)
    rows = list(itertools.islice(data.conversations(), STEPS * ROWS_PER_STEP))
    tokenizer = make_tokenizer(message["content"] for row in rows for message in row)
    model = make_model(tokenizer)
    print(f"training {model.num_parameters():,} parameters on {len(rows):,} conversations", flush=True)
    train(model, tokenizer, [tokenizer.apply_chat_template(row, tokenize=False) for row in rows])
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def sync(folder: Path) -> None:
    """Bring all files of the folder to the disk, so that its rename is the last thing to get there."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def main(root: Path) -> None:
    folder = root / scripts_hash()
    if folder.exists():
        print(f"{folder}: is there already")
    else:
        # Left by a run that was interrupted: one Job runs at a time.
        for stale in root.glob("making-*"):
            shutil.rmtree(stale)
        making = root / f"making-{folder.name}"
        making.mkdir(parents=True)
        make(making)
        sync(making)
        making.rename(folder)
        print(f"{folder}: made")
    link = root / "base.new"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.rename(root / "base")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
