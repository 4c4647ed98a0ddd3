"""Models are loaded in shards: equal to whole ones in every weight and every step, at a fraction of the memory."""

import inspect
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from loading_kit import GRPO, ROWS, large_model, measure, size
from peft import LoraConfig, PeftModel, get_peft_model
from trainer_kit import KILL, TRAIN_ONLY, Warm, at_step, job_file, metrics, preference_pairs, write_jsonl
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

# transformers and accelerate load and shard as they do without us.
THEIRS = """
from trl_trainer.models import base
base.is_streamed = lambda run: False
"""

# qlora is refused without a GPU, for its speed; bitsandbytes' arithmetic is the same.
ON_CPU = """
import bitsandbytes
from trl_trainer.preflight import image
image.check = lambda *given: None
"""

# Memory of large temporary tensors goes back at once, so that it is not taken for that of shards.
MAPPED = """
import ctypes
assert ctypes.CDLL("libc.so.6").mallopt(-3, 2**20) == 1  # M_MMAP_THRESHOLD
"""

# How much of the model lies in mapped files when it is about to be sharded, and in no memory of a rank.
SHARE = """
import pathlib
from trl_trainer.distributed import loading
shard = loading.shard
def looked_at(run, trainer):
    pathlib.Path(run.work, f"mapped-{rank}").write_text(str(loading.mapped_share(trainer.model)))
    shard(run, trainer)
loading.shard = looked_at
"""

# When the model is sharded every rank compares it with one that from_pretrained loads whole, and ends.
COMPARE = """
import json, os, pathlib
import torch
import torch.distributed as dist
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
    quantized = getattr(trainer.model.config, "quantization_config", None)
    four = {"quantization_config": quantized} if quantized else {}
    whole = kind.from_pretrained(trainer.model.config._name_or_path, dtype=trainer.model.config.dtype, **labels, **four)
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
        constants = 0
        for name, layer in other.named_modules():
            if getattr(layer, "quant_state", None) is not None:
                theirs = layer.quant_state.as_dict(packed=True)
                ours = model.get_submodule(name).quant_state.as_dict(packed=True)
                assert all(ours[key].equal(value) for key, value in theirs.items()), name
                constants += len(theirs) == len(ours) == 5
        assert bool(constants) == bool(quantized), constants
        for name, value in wanted.items():
            if quantized and name.endswith(("lora_A.default.weight", "lora_B.default.weight")):
                value = value.bfloat16()  # TRL trains them so beside 4 bits
            # What is trained beside an adapter is trained in fp32.
            is_trained = model is trainer.model and found[name].requires_grad and not quantized
            dtype = torch.float32 if is_trained else value.dtype
            assert found[name].dtype == dtype, (name, found[name].dtype, value.dtype)
            # By bits: two 4-bit values may look like no number.
            bits = torch.int32 if dtype == torch.float32 else torch.int16
            assert found[name].detach().view(bits).equal(value.detach().to(dtype).view(bits)), name
    for model, other in pairs[1:]:
        size = sum(value.nbytes for value in other.parameters())
        share = sum(value.to_local().nbytes for value in model.parameters()) / size if world > 1 else 1
        assert abs(share - 1 / world) < 0.02, share
        if model.dtype == torch.float32:
            ids = torch.randint(10, other.config.vocab_size, (4, 16), generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                sharded, wanted = (each(input_ids=ids).logits.log_softmax(-1) for each in (model, other.eval()))
            assert sharded.equal(wanted)
    noted = [
        {"groups": sum(isinstance(module, FSDPModule) for module in model.modules()), "dtype": str(model.dtype)}
        for model, _ in pairs
    ]
    pathlib.Path(trainer.args.output_dir, f"compared-{rank}").write_text(json.dumps(noted))
    if world > 1:
        dist.barrier()
    os._exit(0)
sharding.check = compare
"""


@pytest.fixture(scope="module")
def models(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model in fp32 and in bf16, as a classifier in fp32, and a mixture of experts, which transformers fuses
    when it loads them."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
    )

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
    classifier = tmp_path_factory.mktemp("classifier")
    AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1).save_pretrained(classifier)
    for folder in (low, experts, classifier):
        AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return {"fp32": model_folder, "bf16": low, "experts": experts, "classifier": classifier}


def start(folder: Path, model: Path, kind: str, world: int = 2, **spec: Any) -> Path:
    """Write a job file and its rows."""
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ROWS[kind](60))
    spec = {"evaluation": {"enabled": False}, **({"grpo": GRPO} if kind == "GRPOJob" else {}), **spec}
    return job_file(folder, model, kind, spec=spec, numProcPerNode=world)


@pytest.mark.parametrize(
    ("kind", "model", "method", "precision"),
    [
        ("SFTJob", "bf16", "lora", "bf16"),  # mapped as it is
        ("SFTJob", "bf16", "lora", "fp32"),  # and converted tensor by tensor
        ("SFTJob", "fp32", "lora", "bf16"),
        ("DPOJob", "bf16", "none", "fp32"),
        ("DPOJob", "fp32", "none", "bf16"),
        ("DPOJob", "experts", "none", "bf16"),  # fused and sent
        ("DPOJob", "experts", "lora", "fp32"),
        ("GRPOJob", "bf16", "none", "bf16"),
        ("RewardJob", "fp32", "lora", "bf16"),  # a new head
        ("RewardJob", "fp32", "none", "fp32"),
        ("RewardJob", "classifier", "lora", "bf16"),  # and an old one, which peft copies
        ("SFTJob", "fp32", "qlora", "bf16"),  # quantized by each
        ("RewardJob", "experts", "qlora", "bf16"),  # and by rank 0
    ],
)
def test_every_weight_is_that_of_a_whole_model(
    kind: str, model: str, method: str, precision: str, warm: Warm, models: dict[str, Path], tmp_path: Path
) -> None:
    """On three ranks, which no dimension of the model is a multiple of."""
    spec = {"peft": {"method": method}, "training": {"maxSteps": 1, "precision": precision, "perDeviceBatchSize": 4}}
    job = start(tmp_path / "job", models[model], kind, 3, **spec)
    ended = warm.run(job, 3, prelude=[ON_CPU, COMPARE])
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
    job = start(folder, model, kind, world, training=training, **spec)
    ended = warm.run(job, world, prelude=[*prelude, TRAIN_ONLY])
    assert set(ended.codes) == {0}, ended.logs
    return [line["loss"] for line in metrics(folder) if "loss" in line]


@pytest.mark.parametrize(
    ("kind", "model", "method", "training"),
    [
        ("SFTJob", "fp32", "lora", {"gradientCheckpointing": True}),
        ("SFTJob", "fp32", "qlora", {"precision": "bf16"}),
        ("DPOJob", "fp32", "none", {}),
        ("DPOJob", "experts", "lora", {}),  # with the loss of the router
        ("GRPOJob", "fp32", "none", {}),
        ("RewardJob", "fp32", "none", {"gradientCheckpointing": True}),
    ],
)
def test_training_is_what_it_is_with_whole_models(
    kind: str,
    model: str,
    method: str,
    training: dict[str, Any],
    warm: Warm,
    models: dict[str, Path],
    tmp_path: Path,
) -> None:
    spec: dict[str, Any] = {"peft": {"method": method}, "training": training}
    found = losses(warm, tmp_path / "ours", models[model], kind, 2, ON_CPU, **spec)
    wanted = losses(warm, tmp_path / "theirs", models[model], kind, 2, ON_CPU, THEIRS, **spec)
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
    job = job_file(folder, model_folder, spec=spec, numProcPerNode=3, attempt=1)
    ended = warm.run(job, 3, prelude=[TRAIN_ONLY])
    assert ended.codes == [0, 0, 0], ended.logs
    found = [line["loss"] for line in metrics(folder) if "loss" in line]
    assert found[:3] == pytest.approx(wanted[:3], abs=1e-6)
    assert found[-2:] == pytest.approx(wanted[-2:], abs=1e-6)


def test_loading_takes_little_more_memory_than_one_model(warm: Warm, tmp_path: Path) -> None:
    """Of four ranks together, shards included, in sizes of the model as it is loaded. 20 MB of each are not weights:
    docs/memory.md has a larger model."""
    dense, experts = large_model(tmp_path / "dense", 120), large_model(tmp_path / "experts", 120, experts=8)
    adapter = {"r": 4, "targetModules": ["q_proj"]}
    for model, precision, loaded, limit in (
        (dense, "bf16", size(dense), 1.6),
        # Twice as wide as the files have it.
        (dense, "fp32", 2 * size(dense), 1.2),
        (experts, "bf16", size(experts), 2.1),
    ):
        spec = {"peft": {"method": "lora", **adapter}, "training": {"precision": precision}}
        found = measure(warm, model, tmp_path / f"{model.name}-{precision}-job", "SFTJob", **spec)
        assert sum(rank["peak"] - 20 * 2**20 for rank in found) <= limit * loaded, (model, found)
    spec = {"peft": {"method": "qlora", **adapter}, "training": {"precision": "bf16"}}
    found = measure(warm, dense, tmp_path / "qlora-job", "SFTJob", prelude=(ON_CPU, MAPPED, SHARE), **spec)
    # Its peak would not tell: what bitsandbytes takes for one layer is more than the whole model in 4 bits.
    assert all(float((tmp_path / f"qlora-job/storage/uid-1/mapped-{rank}").read_text()) > 0.9 for rank in range(4))
    assert sum(rank["kept"] - 20 * 2**20 for rank in found) <= 0.4 * size(dense), found
    # bitsandbytes takes 30 bytes for each value of a layer, on the device.
    assert max(rank["peak"] - rank["kept"] for rank in found) <= 40 * 3072 * 1024, found


def test_a_model_of_the_hub_is_mapped_from_the_cache(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several files and in fp32; wanted in bf16."""
    import torch
    from transformers import AutoModelForCausalLM

    from trl_trainer.distributed import loading
    from trl_trainer.models import base

    cached = tmp_path / "models--org--base"
    snapshot = cached / "snapshots" / ("a" * 40)
    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(snapshot, max_shard_size="200KB")
    assert len(list(snapshot.glob("*.safetensors"))) > 1
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("a" * 40)
    for name, value in (("HF_HUB_CACHE", str(tmp_path)), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    found = base.from_files("org/base", {"dtype": "bfloat16", "use_safetensors": True}, convert_later=True)
    assert {value.dtype for value in found.parameters()} == {torch.bfloat16}
    assert sum(value.untyped_storage().nbytes() for value in found.parameters()) < 100
    assert loading.mapped_share(found) > 0.9
    assert found.config._name_or_path == "org/base"


@pytest.mark.parametrize(
    ("method", "tied", "modes"),
    [
        ("none", True, ["auto", "auto"]),
        ("lora", True, ["auto", "precompute"]),
        ("lora", False, ["precompute", "auto"]),
    ],
    ids=["full", "lora-tied", "lora-untied"],
)
def test_two_ranks_add_the_tokens_that_one_adds(
    method: str, tied: bool, modes: list[str], warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    """To the policy and to its reference, and they train and export them. What an adapter is compared with is the base
    with new rows as they began: the same that is asked before training. The untied base has room for them, and
    sharding converts its weights."""
    before = AutoModelForCausalLM.from_pretrained(model_folder)
    number = before.config.vocab_size
    if not tied:
        before.config.tie_word_embeddings, before.config.vocab_size = False, number + 2
        model_folder = shutil.copytree(model_folder, tmp_path / "untied")
        before = type(before)(before.config).bfloat16()
        before.save_pretrained(model_folder)
    pairs = preference_pairs(16)
    for pair in pairs:
        pair["chosen"][0]["content"] = f"<think> {pair['chosen'][0]['content']}"
    losses = []
    for world, mode in enumerate(modes, 1):
        folder = tmp_path / str(world)
        folder.mkdir()
        write_jsonl(folder / "train.jsonl", pairs)
        spec = {
            "model": {"addTokens": ["<think>", "<unseen>"]}, "evaluation": {"enabled": False},
            "training": {"maxSteps": 3, "perDeviceBatchSize": 4 // world, "learningRate": 1e-2},
            "checkpoint": {"everySteps": 10}, "peft": {"method": method}, "dpo": {"referenceModel": {"mode": mode}},
        }  # fmt: skip
        job = job_file(folder, model_folder, spec=spec, numProcPerNode=world)
        ended = warm.run(job, world, prelude=[TRAIN_ONLY] if world == 1 else [])
        assert set(ended.codes) == {0}, ended.logs
        losses.append([line["loss"] for line in metrics(folder) if "loss" in line])
    alone, both = losses
    assert alone[0] == pytest.approx(math.log(2), abs=1e-4)
    assert alone[2] < 0.6
    assert alone == pytest.approx(both, abs=1e-4)
    final = tmp_path / "2/storage/uid-1/final"
    model = AutoModelForCausalLM.from_pretrained(final)
    for old, new in zip(tables(before), tables(model), strict=True):
        assert new.shape[0] == model.config.vocab_size == number + 2
        begun = old.mean(dim=0) if tied else old[number:]
        assert 0 < (new[number:] - begun).abs().max(dim=1).values[0] < 0.05
        assert new[:number].equal(old[:number]) == (method == "lora")
    if method == "lora":
        before.resize_token_embeddings(number + 2, mean_resizing=False)
        adapted = PeftModel.from_pretrained(before, final / "adapter").merge_and_unload()
        assert all(old.equal(new) for old, new in zip(tables(adapted), tables(model), strict=True))


def tables(model: Any) -> list[Any]:
    return [model.get_input_embeddings().weight, model.lm_head.weight]


def test_peft_says_nothing_of_the_bias_of_a_head_with_new_rows(model_folder: Path) -> None:
    """vocabulary.complete_head says it; when this fails, that can go."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    config = LoraConfig(target_modules=["q_proj"], trainable_token_indices=[0])
    head = get_peft_model(model, config).get_output_embeddings()
    assert head.weight.shape == model.get_input_embeddings().weight.shape
    assert not hasattr(head, "bias")
