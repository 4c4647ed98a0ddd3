"""The parts of `make gpu-check PART=truth`, the most important first: what must be true on a GPU.

Each part returns what it measured, by name; AssertionError says what does not hold, NotRun what is missing.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import fmean
from typing import Any

from ranks import STEPS, Machine, NotRun, Trained

FULL = {"peft": {"method": "none"}}
LORA = {"peft": {"method": "lora"}}
SAVED = STEPS // 2
DPO: dict[str, Any] = {
    **FULL, "checkpoint": {"everySteps": SAVED}, "dataset": {"evalSplit": 0.2}, "evaluation": {"maxExamples": 8},
}  # fmt: skip
SFT: dict[str, Any] = {**LORA, "checkpoint": {"everySteps": SAVED}, "training": {"learningRate": 2e-3}}
Found = dict[str, str]


@dataclass(frozen=True)
class Part:
    name: str
    promise: str
    seconds: int
    """Its limit on a GPU."""
    check: Callable[[Machine], Found]


def _numbers(found: Trained) -> Found:
    losses = found.losses
    return {
        "loss": f"{losses[0]:.4f} to {losses[-1]:.4f}",
        "step": f"{found.step_seconds:.3f} s",
        "peak memory": f"{found.measures['peak'] / 2**30:.2f} GiB",
    }


def _falls(found: Trained) -> Found:
    first, last = (fmean(losses) for losses in (found.losses[:3], found.losses[-3:]))
    assert last < first, f"the loss does not fall: {found.losses}"
    return _numbers(found)


def dpo(machine: Machine) -> Found:
    found = machine.train("dpo", "DPOJob", **DPO)
    assert [line for line in found.log if "eval_loss" in line], "held-out pairs were not evaluated"
    return _falls(found)


def sft(machine: Machine) -> Found:
    return _falls(machine.train("sft", "SFTJob", **SFT))


def grpo(machine: Machine) -> Found:
    generation = {"maxCompletionLength": 64 if machine.device == "cuda" else 8}
    rewards = [{"name": "length", "length": {"target": 20}}]
    return _numbers(
        machine.train(
            "grpo", "GRPOJob", **LORA, training={"maxSteps": 5}, grpo={"rewards": rewards, "generation": generation}
        )
    )


def reward(machine: Machine) -> Found:
    found = _falls(machine.train("reward", "RewardJob", **FULL))
    machine.forget("reward")
    return found


def fsdp(machine: Machine) -> Found:
    found = machine.train("fsdp", "DPOJob", prelude="fsdp=True", **DPO)
    backend = str(found.measures["backend"])
    assert found.measures["sharded"], "parameters are no DTensors"
    assert ("nccl" if machine.device == "cuda" else "gloo") in backend, backend
    whole = _earlier(machine, "dpo")
    apart = max(abs(a - b) for a, b in zip(whole.losses, found.losses, strict=True))
    assert apart < 0.02, f"losses differ from those of dpo by up to {apart}: {whole.losses}, {found.losses}"
    return {**_falls(found), "losses differ from those of dpo by at most": f"{apart:.4f}", "backend": backend}


def memory(machine: Machine) -> Found:
    if machine.device != "cuda":
        raise NotRun("needs a GPU: its allocator counts what the estimate is about")
    if not machine.done:
        raise NotRun("no job has ended")
    ratios = {name: found.measures["peak"] / found.estimate for name, found in machine.done.items()}
    said = {name: f"{ratio:.2f} of the estimate" for name, ratio in ratios.items()}
    low = [name for name, ratio in ratios.items() if ratio > 1.1]
    assert not low, f"more than 10 % above the estimate: {', '.join(low)} ({said})"
    return said


def resume(machine: Machine) -> Found:
    whole = _earlier(machine, "sft")
    machine.train("resume", "SFTJob", prelude=f"kill_at={SAVED + 2}, saved={SAVED}", lives=False, **SFT)
    found = machine.train("resume", "SFTJob", again=True, **SFT)
    first = int(found.measures["first"])
    assert first == SAVED + 1, f"it went on at step {first}, not after the checkpoint of step {SAVED}"
    apart = max(abs(a - b) for a, b in zip(whole.losses[SAVED:], found.losses[-(STEPS - SAVED) :], strict=True))
    # On a GPU attention's backward pass adds in no fixed order.
    allowed = 1e-2 if machine.device == "cuda" else 1e-6
    assert apart <= allowed, f"losses after the resume differ by up to {apart}: {whole.losses}, {found.losses}"
    return {"losses differ by at most": f"{apart:.1e}"}


def checkpoint(machine: Machine) -> Found:
    said = {}
    for name in ("dpo", "fsdp"):
        found = _earlier(machine, name)
        others = sorted(found.gap(step) for step in range(2, STEPS) if step != SAVED)
        size = sum(path.stat().st_size for path in (found.work / f"checkpoint-{SAVED}").rglob("*") if path.is_file())
        form = "sharded, by a thread" if name == "fsdp" else "whole"
        blocked = found.gap(SAVED) - others[len(others) // 2]
        said[f"{form}, {size / 2**30:.2f} GiB"] = f"training stands still for {blocked:.2f} s"
        machine.forget(name)
    return said


def compiled(machine: Machine) -> Found:
    plain = _earlier(machine, "dpo")
    found = machine.train("compiled", "DPOJob", **FULL, training={"torchCompile": True})
    machine.forget("compiled")
    return {**_falls(found), "plain step / compiled step": f"{plain.step_seconds / found.step_seconds:.2f}"}


def cpu_offload(machine: Machine) -> Found:
    _needs_gpu(machine)
    found = machine.train("offload", "DPOJob", prelude="fsdp=True", **FULL, fsdp={"cpuOffload": True})
    machine.forget("offload")
    plain = _earlier(machine, "fsdp")
    saved = 1 - found.measures["peak"] / plain.measures["peak"]
    assert saved > 0, "it takes no less of the GPU's memory"
    return {**_falls(found), "less memory than without": f"{saved:.0%}"}


def qlora(machine: Machine) -> Found:
    _needs_gpu(machine, "bitsandbytes")
    return _falls(machine.train("qlora", "SFTJob", **{**SFT, "peft": {"method": "qlora"}}))


def eight_bits(machine: Machine) -> Found:
    _needs_gpu(machine, "bitsandbytes")
    found = machine.train("8bit", "DPOJob", **FULL, training={"optimizer": "adamw_bnb_8bit"})
    machine.forget("8bit")
    return _falls(found)


def fp16(machine: Machine) -> Found:
    _needs_gpu(machine)
    return _falls(machine.train("fp16", "SFTJob", **LORA, training={"learningRate": 2e-3, "precision": "fp16"}))


def activation_offloading(machine: Machine) -> Found:
    _needs_gpu(machine)
    plain = _earlier(machine, "sft")
    found = machine.train(
        "activations", "SFTJob", **LORA, training={"learningRate": 2e-3, "activationOffloading": True}
    )
    saved = 1 - found.measures["peak"] / plain.measures["peak"]
    assert saved > 0, "it takes no less of the GPU's memory"
    return {**_falls(found), "less memory than without": f"{saved:.0%}"}


def merge(machine: Machine) -> Found:
    final = _earlier(machine, "sft").work / "final"
    output = final.parent / "merge.json"
    machine.call(f"instruments.compare_merged({str(machine.model)!r}, {str(final)!r}, {str(output)!r})")
    found = json.loads(output.read_text())
    share = found["merged"] / found["adapter"]
    assert share < 0.05, f"the merged model lies {share:.0%} of the adapter's effect away from base and adapter"
    return {"from base and adapter": f"{share:.1%} of the adapter's effect on the logits"}


def _earlier(machine: Machine, name: str) -> Trained:
    if name not in machine.done:
        raise NotRun(f"{name} has not ended well")
    return machine.done[name]


def _needs_gpu(machine: Machine, *packages: str) -> None:
    missing = [*([] if machine.device == "cuda" else ["a GPU"]), *(name for name in packages if not find_spec(name))]
    if missing:
        raise NotRun(f"needs {' and '.join(missing)}")


PARTS = (
    Part("dpo", "full, bf16, with evaluation: the loss falls", 60, dpo),
    Part("sft", "LoRA, bf16: the loss falls", 45, sft),
    Part("grpo", "LoRA, bf16: the loss is finite", 60, grpo),
    Part("reward", "full, bf16: the loss falls", 45, reward),
    Part("fsdp", "dpo under FSDP2 with one process: sharded, over NCCL, the losses of dpo within 0.02", 60, fsdp),
    Part("memory", "no job so far took more than 1.1 x the estimate", 5, memory),
    Part("resume", "sft killed and resumed: the losses of a run that nobody killed", 60, resume),
    Part("checkpoint", "how long training stands still", 5, checkpoint),
    Part("torchCompile", "dpo: the loss falls", 90, compiled),
    Part("cpuOffload", "dpo under FSDP2: the loss falls, with less memory", 60, cpu_offload),
    Part("qlora", "sft: the loss falls", 45, qlora),
    Part("8-bit optimizer", "dpo, full: the loss falls", 45, eight_bits),
    Part("fp16", "sft: the loss falls", 45, fp16),
    Part("activationOffloading", "sft: the loss falls, with less memory", 45, activation_offloading),
    Part("merge", "the exported sft model is base and adapter", 45, merge),
)
assert len({part.name for part in PARTS}) == len(PARTS)
