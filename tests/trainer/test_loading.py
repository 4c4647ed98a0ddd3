"""Models are loaded in shards: equal to whole ones in every weight and every step, at a fraction of the memory."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from loading_kit import GRPO, ROWS, large_model, measure, size
from trainer_kit import KILL, Warm, at_step, job_file, metrics, write_jsonl
from trl import DPOTrainer, GRPOTrainer

# transformers and accelerate load and shard as they do without us.
THEIRS = """
from trl_trainer.models import base
base.is_streamed = lambda run: False
"""

# At the beginning of training every rank compares its model with one that from_pretrained loads whole.
COMPARE = """
import json, pathlib
import torch
from peft import get_peft_model
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed
from trl import RewardTrainer
from trl_trainer.distributed import sharding
def compare(trainer, world):
    full = lambda value: value.full_tensor() if hasattr(value, "full_tensor") else value
    kind = AutoModelForSequenceClassification if isinstance(trainer, RewardTrainer) else AutoModelForCausalLM
    labels = {"num_labels": 1} if isinstance(trainer, RewardTrainer) else {}
    set_seed(trainer.args.seed)
    whole = kind.from_pretrained(trainer.model.config._name_or_path, dtype=trainer.model.config.dtype, **labels)
    if hasattr(trainer.model, "peft_config"):
        set_seed(trainer.args.seed)
        whole = get_peft_model(whole, trainer.model.peft_config["default"])
    pairs = [(trainer.model, whole)]
    if getattr(trainer, "ref_model", None) is not None:
        reference = AutoModelForCausalLM.from_pretrained(
            trainer.ref_model.config._name_or_path, dtype=trainer.ref_model.config.dtype
        )
        pairs.append((trainer.ref_model, reference))
    for model, other in pairs:
        found = {name: full(value) for name, value in model.named_parameters()}
        found |= dict(model.named_buffers())
        wanted = dict(other.named_parameters()) | dict(other.named_buffers())
        assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
        for name, value in wanted.items():
            # What is trained beside an adapter is trained in fp32.
            is_trained = model is trainer.model and found[name].requires_grad
            dtype = torch.float32 if is_trained else value.dtype
            assert found[name].dtype == dtype, (name, found[name].dtype, value.dtype)
            assert found[name].equal(value.to(dtype)), name
    noted = [
        {"groups": sum(isinstance(module, FSDPModule) for module in model.modules()), "dtype": str(model.dtype)}
        for model, _ in pairs
    ]
    pathlib.Path(trainer.args.output_dir, f"compared-{rank}").write_text(json.dumps(noted))
sharding.check = compare
"""


@pytest.fixture(scope="module")
def models(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model in fp32 and in bf16, and a mixture of experts, which transformers fuses when it loads them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

    low, experts = tmp_path_factory.mktemp("bf16"), tmp_path_factory.mktemp("experts")
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=base.config.vocab_size, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=32,
        max_position_embeddings=256, tie_word_embeddings=False, pad_token_id=0, bos_token_id=None,
        eos_token_id=base.config.eos_token_id,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(experts)
    base.to(torch.bfloat16).save_pretrained(low)
    for folder in (low, experts):
        AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return {"fp32": model_folder, "bf16": low, "experts": experts}


def start(folder: Path, model: Path, kind: str, world: int = 2, **spec: Any) -> Path:
    """Write a job file and its rows."""
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ROWS[kind](60))
    spec = {"evaluation": {"enabled": False}, **({"grpo": GRPO} if kind == "GRPOJob" else {}), **spec}
    return job_file(folder, model, kind, spec=spec, numProcPerNode=world)


@pytest.mark.parametrize(
    ("kind", "model", "method", "precision"),
    [
        ("SFTJob", "bf16", "none", "bf16"),  # mapped, converted row by row
        ("SFTJob", "bf16", "lora", "bf16"),  # mapped as it is
        ("DPOJob", "fp32", "none", "bf16"),  # the policy mapped, the reference sent
        ("DPOJob", "experts", "none", "bf16"),  # fused and sent
        ("DPOJob", "experts", "lora", "fp32"),
        ("RewardJob", "bf16", "lora", "bf16"),  # a new head
        ("RewardJob", "fp32", "none", "fp32"),
        ("GRPOJob", "bf16", "none", "bf16"),
    ],
)
def test_every_weight_is_that_of_a_whole_model(
    kind: str, model: str, method: str, precision: str, warm: Warm, models: dict[str, Path], tmp_path: Path
) -> None:
    """On three ranks, which no dimension of the model is a multiple of."""
    spec = {"peft": {"method": method}, "training": {"maxSteps": 1, "precision": precision, "perDeviceBatchSize": 4}}
    job = start(tmp_path / "job", models[model], kind, 3, **spec)
    ended = warm.run(job, 3, prelude=[COMPARE])
    assert ended.codes == [0, 0, 0], ended.logs
    for rank in range(3):
        policy, *references = json.loads((tmp_path / f"job/storage/uid-1/compared-{rank}").read_text())
        assert policy["groups"] > 3
        # Two blocks and the model. As a group of its own the head would not be there when TRL reads it.
        dtype = "torch.bfloat16" if precision == "bf16" else "torch.float32"
        has_reference = kind in ("DPOJob", "GRPOJob") and method == "none"
        assert references == ([{"groups": 3, "dtype": dtype}] if has_reference else [])


def test_grpo_loads_its_reference_where_we_put_ours_in_its_place() -> None:
    """Fails when reference.in_grpo is needless, or replaces what is not used."""
    made = inspect.getsource(GRPOTrainer.__init__)
    assert "ref_model" not in inspect.signature(GRPOTrainer.__init__).parameters
    assert "self.ref_model = create_model_from_path(" in made
    assert made.index(" model = create_model_from_path(") < made.index("self.ref_model = create_model_from_path(")


def test_dpo_hashes_its_reference_where_we_give_a_name() -> None:
    """Fails when reference.named_hash is needless, or replaces what is not used."""
    assert "hash_module(self.ref_model or self.model)" in inspect.getsource(DPOTrainer.__init__)


def test_one_process_compares_in_the_precision_of_the_arithmetic(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    spec = {"peft": {"method": "none"}, "training": {"maxSteps": 1, "precision": "bf16"}}
    ended = warm.run(start(tmp_path / "job", model_folder, "GRPOJob", 1, **spec), 1, prelude=[COMPARE])
    assert ended.codes == [0], ended.logs
    noted = json.loads((tmp_path / "job/storage/uid-1/compared-0").read_text())
    assert [model["dtype"] for model in noted] == ["torch.float32", "torch.bfloat16"]


def losses(warm: Warm, folder: Path, model: Path, kind: str, world: int, *prelude: str, **spec: Any) -> list[float]:
    training = {"maxSteps": 4, **spec.pop("training", {})}
    ended = warm.run(start(folder, model, kind, world, training=training, **spec), world, prelude=prelude)
    assert set(ended.codes) == {0}, ended.logs
    return [line["loss"] for line in metrics(folder) if "loss" in line]


@pytest.mark.parametrize(
    ("kind", "method", "training"),
    [
        ("SFTJob", "lora", {"gradientCheckpointing": True}),
        ("DPOJob", "none", {}),
        ("GRPOJob", "none", {}),
        ("RewardJob", "none", {"gradientCheckpointing": True}),
    ],
)
def test_training_is_what_it_is_with_whole_models(
    kind: str, method: str, training: dict[str, Any], warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    spec: dict[str, Any] = {"peft": {"method": method}, "training": training}
    found = losses(warm, tmp_path / "ours", model_folder, kind, 2, **spec)
    wanted = losses(warm, tmp_path / "theirs", model_folder, kind, 2, THEIRS, **spec)
    assert len(found) == 4
    assert found == pytest.approx(wanted, abs=1e-6)


def test_more_ranks_than_rows_train_and_resume(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    """An adapter of rank 2 on three ranks: the last has no row of any of its first halves."""
    spec: dict[str, Any] = {"peft": {"method": "lora", "r": 2}}
    wanted = losses(warm, tmp_path / "theirs", model_folder, "DPOJob", 3, THEIRS, **spec)
    spec["training"] = {"maxSteps": 4}
    folder = tmp_path / "ours"
    ended = warm.run(start(folder, model_folder, "DPOJob", 3, **spec), 3, prelude=at_step(4, KILL, saved=2))
    assert -9 in ended.codes, ended.logs
    spec |= {"evaluation": {"enabled": False}}
    ended = warm.run(job_file(folder, model_folder, spec=spec, numProcPerNode=3, attempt=1), 3)
    assert ended.codes == [0, 0, 0], ended.logs
    found = [line["loss"] for line in metrics(folder) if "loss" in line]
    assert found[:3] == pytest.approx(wanted[:3], abs=1e-6)
    assert found[-2:] == pytest.approx(wanted[-2:], abs=1e-6)


def test_loading_takes_little_more_memory_than_one_model(warm: Warm, tmp_path: Path) -> None:
    """Of four ranks together, shards included. 20 MB of each are not weights: docs/performance.md has a large model."""
    for name, experts, limit in (("dense", 0, 1.6), ("experts", 8, 2.1)):
        model = large_model(tmp_path / name, 160, experts=experts)
        spec: dict[str, Any] = {"peft": {"method": "lora", "r": 4, "targetModules": ["q_proj"]}}
        found = measure(warm, model, tmp_path / f"{name}-job", "SFTJob", training={"precision": "bf16"}, **spec)
        assert sum(rank["peak"] - 20 * 2**20 for rank in found) <= limit * size(model), (name, found)
