"""`make bench-speed`: ours without padding against plain TRL, for each kind; into one JSON file and its table.

TRL's bare trainer trains first. Then blocks of steps of both alternate in one trainer (blocks.py): each pair of blocks
has the same rows, no other pair has them, and the loss of every step must be the bare trainer's. A ratio is plain TRL's
CPU time / ours, of all ranks; ours includes its callbacks. The interval of its median is from a bootstrap over pairs.
A gate that is missed is said and is no failure; losses that differ are one.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import page
import shapes
from bench_trainer import environment, execute, launch
from blocks import num_blocks

SPEED = shapes.SHAPES["speed"]
HEADS = {
    "DPOJob": "TRL's fused head, off a GPU over every position",
    "SFTJob": "TRL's fused head, off a GPU over every position",
    "RewardJob": "one score for each position",
}

Obj = dict[str, Any]


@dataclass(frozen=True)
class Part:
    title: str
    kind: str
    gates: tuple[float, float] = (0.0, 0.0)
    """What the median and the lower bound must reach; 0 where the figure is only told."""
    shape: shapes.Shape = SPEED
    world: int = 1
    against: str = "plain"
    """One of blocks.MODES."""
    sections: Obj = field(default_factory=dict)


LORA: Obj = {"peft": {"method": "lora", "r": 16}}
PARTS = {
    "dpo": Part("dpo", "DPOJob", (2.0, 1.85)),
    "lora": Part("dpo, LoRA r 16", "DPOJob", (2.0, 1.85), sections=LORA),
    "reward": Part("reward", "RewardJob", (2.0, 0)),
    "sft": Part("sft", "SFTJob", (1.7, 0)),
    "dpo-2": Part("dpo", "DPOJob", (2.0, 0), world=2),
    "reward-2": Part("reward", "RewardJob", (2.0, 0), world=2),
    "sft-2": Part("sft", "SFTJob", (1.7, 0), world=2),
    "even": Part("reward, no padding, no prompts", "RewardJob", (0.98, 0), replace(SPEED, prompt=0, even=True)),
    "even-sft": Part("sft, no padding", "SFTJob", (0.98, 0), replace(SPEED, even=True)),
    "defaults": Part("dpo, TRL's default checkpointing", "DPOJob", against="defaults"),
    "vocabulary": Part("dpo, vocabulary 32k", "DPOJob", shape=replace(SPEED, vocabulary=32000)),
    "long": Part("dpo, long completions", "DPOJob", shape=replace(SPEED, completion=390, max_length=1024)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], metavar="part", help=f"default: all: {' '.join(PARTS)}"
    )
    parser.add_argument("--pairs", type=int, help="of blocks, interleaved (default: 40, of parts without a gate 12)")
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps per block (default %(default)s)")
    parser.add_argument("--output", type=Path, help="keep the parts in this file")
    parser.add_argument("--page", type=Path, help="and make its table of them")
    given = parser.parse_args()
    for name in given.parts or PARTS:
        part = PARTS[name]
        found = measure(part, given.pairs or (40 if part.gates[0] else 12), given.steps)
        print(row(found), flush=True)
        if given.output:
            known = json.loads(given.output.read_text()) if given.output.exists() else {}
            known[name] = found
            known = {name: known[name] for name in PARTS if name in known}
            given.output.write_text(json.dumps(known, indent=1) + "\n")
            if given.page:
                page.put(given.page, "bench-speed", table(known))
    return 0


def measure(part: Part, pairs: int, steps: int) -> Obj:
    """Run one part in a process of its own (or several), and return its samples and what comes of them."""
    began, told = time.monotonic(), environment(0)
    blocks = num_blocks(pairs)
    chunk = steps * part.shape.batch * part.world
    training = {
        "maxSteps": steps * blocks, "perDeviceBatchSize": part.shape.batch, "gradientAccumulationSteps": 1,
        "learningRate": 1e-5, "loggingSteps": 1,
        "maxLength": part.shape.max_length, "gradientCheckpointing": False, "paddingFree": "auto",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bench-speed-") as name:
        folder = Path(name)
        # In less than one epoch: the reference of dpo is asked in each step.
        job = shapes.make_job(
            folder, part.shape, world=part.world, gpus=False, steps=steps * blocks, rows=chunk * ((blocks + 1) // 2),
            kind=part.kind, twice=chunk, training=training, **part.sections,
        )  # fmt: skip
        arguments = ["--job", str(job), "--pairs", str(pairs), "--steps", str(steps), "--modes", part.against, "free"]
        execute(launch("blocks.py", part.world, *arguments, "--output", str(folder / "out.json")), folder / "log")
        found: Obj = json.loads((folder / "out.json").read_text())
    return judged(part, found, steps) | {"environment": told, "seconds": round(time.monotonic() - began)}


def judged(part: Part, found: Obj, steps: int) -> Obj:
    """Return what is kept of a part: its shape, ratio, gates and samples."""
    shape = part.shape
    kept: Obj = {
        "title": part.title,
        "world": part.world,
        "shape": f"Qwen3, {shape.layers} layers, hidden {shape.hidden}, {shape.batch} rows a step and rank,"
        f" prompts {shape.prompt}, answers {shape.completion}, at most {shape.max_length} tokens,"
        f" {'equal' if shape.even else 'log-normal'} lengths; fp32",
        "vocabulary": shape.vocabulary,
        "head": HEADS[part.kind],
        "checkpointing": "in plain TRL alone" if part.against == "defaults" else "off",
        "gates": part.gates,
    }
    for name, column in (("cpu", 2), ("wall", 1)):
        times = {mode: [s[column] for s in found["samples"] if s[0] == mode] for mode in (part.against, "free")}
        ratios = [a / b for a, b in zip(times[part.against], times["free"], strict=True)]
        kept[f"{name}_ratio"] = statistics.median(ratios)
        kept[f"{name}_interval"] = bootstrap(ratios)
        kept[f"{name}_ms_per_step"] = [round(1000 * statistics.fmean(t) / steps, 1) for t in times.values()]
    return kept | {
        "pairs": len(ratios),
        "steps_per_block": steps,
        "callback_cpu_ms_per_step": round(sum(found["callback_cpu_us_per_step"].values()) / 1000, 3),
        "losses_differ_by": found["losses_differ_by"],
        "floor": found["floor"],
        "losses": {"bare": found["losses_of_bare_trainer"], "here": found["losses"]},
        "samples": found["samples"],
    }


def bootstrap(ratios: list[float], draws: int = 10_000) -> tuple[float, float]:
    """Return the 95 % interval of the median: of samples of the pairs, drawn with replacement."""
    rng = random.Random(shapes.SEED)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[draws * 25 // 1000], medians[draws * 975 // 1000 - 1]


def verdict(found: Obj) -> str:
    """Return what became of the gates; nothing where there are none."""
    values = (("median", found["cpu_ratio"]), ("lower bound", found["cpu_interval"][0]))
    gates = [(what, value >= gate, gate) for (what, value), gate in zip(values, found["gates"], strict=True) if gate]
    return ", ".join(f"{what} {gate:g} {'held' if holds else 'MISSED'}" for what, holds, gate in gates) or "told"


def row(found: Obj) -> str:
    low, high = found["cpu_interval"]
    plain, free = found["cpu_ms_per_step"]
    floor = f", floor {found['floor']:.0e}" if found["floor"] is not None else ""
    return (
        f"| {found['title']} | {found['world']} | **{found['cpu_ratio']:.2f}** ({low:.2f} to {high:.2f})"
        f" | {verdict(found)} | {found['wall_ratio']:.2f} | {plain:.0f}, {free:.0f} ms"
        f" | {found['callback_cpu_ms_per_step']:.2f} ms | {found['losses_differ_by']:.0e}{floor}"
        f" | {found['vocabulary']} | {found['checkpointing']} |"
    )


def table(known: Obj) -> list[str]:
    return [
        "| | ranks | plain TRL's CPU time / ours | gate | by the clock | CPU per step: TRL, ours | of it callbacks"
        " | losses differ by at most | vocabulary | checkpointing |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(row(found) for found in known.values()),
        "",
        *(f"- {text}: {', '.join(names)}." for text, names in told(known).items()),
    ]


def told(known: Obj) -> dict[str, list[str]]:
    """Return what was measured, and where, with the names of the parts that it holds for."""
    texts: dict[str, list[str]] = {}
    for name, found in known.items():
        machine, load = found["environment"], found["environment"]["load_average"][0]
        where = f"{machine['time'][:10]}, {machine['cores']} cores ({machine['cpu']})"
        for text in (
            f"{found['shape']}; {found['head']}",
            f"{found['pairs']} pairs of blocks, steps in each: {found['steps_per_block']};"
            f" {len(found['losses']['bare'])} losses compared; {where}",
        ):
            texts.setdefault(text, []).append(name if "cores" not in text else f"{name} (load {load:.1f} before)")
    return texts


if __name__ == "__main__":
    sys.exit(main())
