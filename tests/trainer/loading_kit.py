"""Models of a size at which memory can be measured, and preludes (trainer_kit.Warm) that look at ranks as they load."""

import json
from pathlib import Path
from typing import Any

from conftest import make_model
from trainer_kit import Warm, conversations, job_file, preference_pairs, prompts, write_jsonl

ROWS = {"SFTJob": conversations, "RewardJob": preference_pairs, "DPOJob": preference_pairs, "GRPOJob": prompts}
GRPO = {"generation": {"maxCompletionLength": 8}, "rewards": [{"name": "short", "length": {"min": 0, "max": 5}}]}

# Peak of this rank's anonymous memory from before the model is loaded until training begins, when it is sharded either
# way, less what was there before.
MEASURE = """
import json, os, pathlib, threading
from trl_trainer import rank as ranks
from trl_trainer.distributed import sharding, world
from trl_trainer.errors import UserError
build = ranks.build
peak, done = [0], threading.Event()
def anonymous():
    text = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(text.split("RssAnon:")[1].split()[0])
def measured(run, *given):
    before = anonymous()
    def sample():
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous())
    thread = threading.Thread(target=sample)
    thread.start()
    def end(*_):
        done.set()
        thread.join()
        found = world.gather(run, {"peak": max(peak[0], anonymous()) - before, "kept": anonymous() - before})
        if rank == 0:
            pathlib.Path(run.work, "measured.json").write_text(json.dumps(found))
        world.barrier(run)
        raise UserError("InvalidSpec", "measured")
    sharding.check = end
    return build(run, *given)
ranks.build = measured
"""


def measure(
    warm: Warm, model: Path, folder: Path, kind: str, world: int = 4, prelude: tuple[str, ...] = (), **spec: Any
) -> list[dict[str, int]]:
    """Return `peak` and `kept` bytes of each rank while it loads and shards the model."""
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ROWS[kind](40))
    spec = {"evaluation": {"enabled": False}, **({"grpo": GRPO} if kind == "GRPOJob" else {}), **spec}
    # Its check would train on a batch before the end.
    spec["training"] = {"paddingFree": "never", **spec.get("training", {})}
    ended = warm.run(job_file(folder, model, kind, spec=spec, numProcPerNode=world), world, prelude=[*prelude, MEASURE])
    path = folder / "storage/uid-1/measured.json"
    assert path.exists(), ended.logs
    found: list[dict[str, int]] = json.loads(path.read_text())
    return found


def large_model(folder: Path, mebibytes: int, dtype: str = "bfloat16", experts: int = 0) -> Path:
    """Write a model of about that size into `folder`, with the tiny model's tokenizer; with `experts` a mixture of
    so many, which transformers fuses when it loads them."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder.mkdir()
    make_model(folder)
    shape: dict[str, Any] = {
        "vocab_size": 8192, "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64,
        "max_position_embeddings": 256, "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": None,
    }  # fmt: skip
    block = 12 * 2**20
    width = torch.finfo(getattr(torch, dtype)).bits // 8
    shape["num_hidden_layers"] = max(1, (mebibytes * 2**20 // width - 2 * 8192 * 1024) // block)
    if experts:
        moe = {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 3072 // experts}
        model: Any = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **moe))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**shape, intermediate_size=3072))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def size(folder: Path) -> int:
    """Return the bytes of a model's weights in its files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
