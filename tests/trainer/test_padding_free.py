"""The same losses and gradients without padding: what the guard lets through and what it does not, and how a row is
made; test_padding_free_runs.py has whole runs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from trl_trainer.padding_free import check, compared, guard, reduced, rows
from trl_trainer.padding_free.attention import NAME, Refused, attention
from trl_trainer.padding_free.hooks import PaddingFree
from trl_trainer.preflight import padding

pytestmark = pytest.mark.usefixtures("one_thread")

HOLD = (
    "qwen2", "qwen3", "llama", "mistral", "gemma", "gemma3_text", "phi3", "olmo2", "olmo3", "qwen3_moe", "mixtral",
    "smollm3", "granite", "cohere2", "glm4",
)  # fmt: skip


def refusal(kind: str, *, pairs: bool = True, left: bool = False, drops: bool = False, **fields: Any) -> str | None:
    return guard.refusal(CONFIG_MAPPING[kind](**fields), pairs=pairs, left=left, drops=drops)


@pytest.mark.parametrize("kind", HOLD)
def test_an_architecture_computes_the_same_without_padding(kind: str) -> None:
    assert refusal(kind) is None
    assert refusal(kind, pairs=False, left=True, drops=True) is None


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        ("gemma2", {}, "its attention is eager"),
        ("gpt_oss", {}, "its attention is eager"),
        ("llama4_text", {}, "cannot be tried without"),
        ("falcon_h1", {}, "hand a state on from token to token"),
        ("qwen3_5_text", {}, "hand a state on from token to token"),
        ("bloom", {}, "its attention is eager"),
        ("stablelm", {}, "would compute other hidden states"),
        ("llama", {"attention_dropout": 0.1}, "its attention drops 0.1 of what it sees"),
        ("mamba2", {}, "hand a state on"),
        ("opt", {}, "it is random while it trains"),
        ("opt", {"dropout": 0.0, "layerdrop": 0.1}, "it is random while it trains"),
        ("opt", {"dropout": 0.0, "left": True, "pairs": False}, "would compute other hidden states"),
        ("opt", {"left": True, "pairs": False}, "it is random while it trains"),
        ("phimoe", {}, "it is random while it trains"),
        ("mixtral", {"router_jitter_noise": 0.1}, "it is random while it trains"),
    ],
)
def test_an_architecture_that_would_compute_something_else_is_refused(
    kind: str, fields: dict[str, Any], reason: str
) -> None:
    assert reason in str(refusal(kind, **fields))


def test_a_model_whose_own_passes_differ_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_wider", lambda ids, mask: (ids.roll(1, 0), mask))
    assert "its own hidden states differ by" in str(refusal("qwen3"))


def test_a_difference_that_is_not_finite_is_never_lost() -> None:
    one, nan = torch.ones(2), torch.tensor([1.0, math.nan])
    for found, other in ((one, nan), (nan, one), (nan, nan), (one * math.inf, one), (one * math.inf, one * math.inf)):
        assert compared.difference(found, other) == math.inf
        assert compared.gradient_difference([one, found], [one, other]) == math.inf
    assert compared.gradient_difference([one * 3, one], [one, one]) == 2.0
    assert compared.gradient_difference([], []) == 0.0


@pytest.mark.parametrize(
    ("kind", "fields", "capability", "reason"),
    [
        ("qwen3", {}, (8, 0), None),
        ("llama", {"hidden_size": 64, "num_attention_heads": 4, "head_dim": None}, (9, 0), None),
        ("gemma3_text", {}, (8, 9), None),
        ("qwen3", {}, (7, 5), "needs GPUs of compute capability 8.0, and this one has 7.5"),
        ("deepseek_v3", {}, (9, 0), "takes deepseek_v3's heads, 192 wide for keys and 128 for values"),
        ("qwen3", {"head_dim": 512}, (9, 0), "takes qwen3's heads, 512 wide"),
        ("gpt2", {"n_embd": 300, "n_head": 15}, (9, 0), "takes gpt2's heads, 20 wide"),
    ],
)
def test_a_gpu_without_a_kernel_is_known_beforehand(
    kind: str, fields: dict[str, Any], capability: tuple[int, int], reason: str | None
) -> None:
    why = padding.kernel_refusal(CONFIG_MAPPING[kind](**fields), capability)
    assert why is None if reason is None else reason in str(why)


def test_ranks_compute_without_padding_only_where_all_of_them_may() -> None:
    alike = (1e-6, 1e-6, None)
    for arithmetic, found, floor, said in (
        (torch.float32, 9e-5, 1e-6, None),
        (torch.float32, 2e-4, 1e-6, "a batch differs by 2.0e-04 of its size, and may by 1.0e-04"),
        (torch.float32, 2e-4, 1e-4, None),
        (torch.float32, 2e-4, 2e-3, "random while it trains"),
        (torch.bfloat16, 4e-2, 1e-2, None),
        (torch.bfloat16, 0.2, 1e-2, "a batch differs by 2.0e-01"),
        (torch.float16, 0.7, 0.9, "random while it trains"),
        (torch.bfloat16, math.inf, 1e-2, "a batch differs by inf"),
        (torch.bfloat16, math.inf, math.inf, "random while it trains"),
    ):
        for ranks in ([(found, floor, None), alike], [alike, (found, floor, None)]):
            why = check.refusal(ranks, arithmetic)
            assert why is None if said is None else said in str(why), (arithmetic, found, floor)
    assert check.refusal([alike, (0.0, 0.0, "OSError: x")], torch.float32) == "without, a batch fails: OSError: x"


def test_dropout_of_attention_counts_where_trl_leaves_it_on() -> None:
    assert refusal("gpt2", pairs=True, drops=False) is None, "TRL switches its modules off"
    assert "its attention drops 0.1" in str(refusal("gpt2", pairs=False, drops=True))


def test_attention_refuses_what_it_does_not_know() -> None:
    heads = [torch.randn(1, 2, 9, 16) for _ in range(3)]
    mask = torch.ones(3, 3)
    row = rows.of(torch.arange(9).view(3, 3), mask, pairs=False)
    module = nn.Module()
    assert attention(module, *heads, None, padding_free=row, position_ids=mask, s_aux=None)[0].shape == (1, 9, 2, 16)
    for wrong, said in (
        ({"s_aux": torch.ones(2)}, "takes s_aux"),
        ({"softcap": 50.0}, "takes softcap"),
        ({"dropout": 0.2}, "drops 0.2"),
        ({"is_causal": False}, "not causal"),
    ):
        with pytest.raises(Refused, match=said):
            attention(module, *heads, None, padding_free=row, **wrong)
    module.is_causal = False
    with pytest.raises(Refused, match="not causal"):
        attention(module, *heads, None, padding_free=row)


def test_a_row_has_each_token_once_and_a_common_prompt_once() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 0], [5, 9, 9, 0, 0], [5, 6, 1, 0, 0], [5, 9, 9, 0, 0]])
    mask = (ids != 0).long()
    row = rows.of(ids, mask, pairs=True)
    assert row.pack(ids).tolist() == [[5, 6, 7, 8, 5, 9, 9, 1, 9]], "the last token of a sequence is its own"
    assert row.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 2, 2]]
    assert (row.queries, row.keys) == ([4, 3, 1, 1], [4, 3, 3, 3])
    assert torch.equal(row.pad(row.pack(ids)[0][:, None])[..., 0] * mask, ids)
    alone = rows.of(ids, mask, pairs=False)
    assert alone.gather is None
    assert alone.key_starts is alone.query_starts


def small(kind: str = "qwen3") -> Any:
    torch.manual_seed(0)
    config = reduced.config_of(CONFIG_MAPPING[kind]())
    return AutoModelForCausalLM.from_config(config, attn_implementation=NAME)


def test_what_is_no_padded_batch_of_training_is_computed_as_it_comes() -> None:
    model = small()
    seen: list[tuple[int, ...]] = []
    ids = torch.arange(3, 21).view(3, 6)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]])
    PaddingFree(model.base_model, pairs=True)
    model.base_model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    decoder = model.base_model
    decoder(input_ids=ids, attention_mask=mask, use_cache=False)
    decoder(input_ids=ids[:2], attention_mask=mask[:2], position_ids=torch.arange(6)[None])
    decoder(input_ids=ids[:2], attention_mask=mask[:2], use_cache=True)
    decoder(input_ids=ids[:2], attention_mask=torch.ones(2, 6))
    assert seen == [(3, 6), (2, 6), (2, 6), (2, 6)], "odd, with positions, generating, nothing to save"
    seen.clear()
    decoder(input_ids=ids[:2], attention_mask=mask[:2], use_cache=False)
    assert seen == [(1, 10)]


def test_router_logits_are_padded_again() -> None:
    model = small("qwen3_moe").train()
    ids, mask = compared.batch(64, 0, left=False)
    given = {"input_ids": ids, "attention_mask": mask, "output_router_logits": True, "use_cache": False}
    hooks = PaddingFree(model.base_model, pairs=True)
    free = model(**given, labels=ids.masked_fill(mask == 0, -100))
    hooks.is_on = False
    own = model(**given, labels=ids.masked_fill(mask == 0, -100))
    assert torch.allclose(free.aux_loss, own.aux_loss, rtol=1e-5)
    assert torch.allclose(free.loss, own.loss, rtol=1e-5)


def test_a_written_config_does_not_name_the_attention(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
