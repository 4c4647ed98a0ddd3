"""A tiny model and a warm process to fork ranks from; everything is made here, from seeds."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Test modules are imported without a package (importlib mode), so what they share needs a place on the path.
sys.path.insert(0, str(Path(__file__).parent))

from trainer_kit import CURT, POLITE, PROMPTS, SEED, TEMPLATE, Warm, warm_process


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 model of about 100,000 parameters with a word-level tokenizer and a chat template."""
    return make_model(tmp_path_factory.mktemp("model"))


def make_model(folder: Path) -> Path:
    """Write that model into `folder`."""
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
    Qwen3ForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A process that has imported torch and TRL, from which ranks are forked."""
    with warm_process(tmp_path_factory.mktemp("warm")) as process:
        yield process


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny models are slower with more, and far slower on a machine that does other things too."""
    import torch

    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)
