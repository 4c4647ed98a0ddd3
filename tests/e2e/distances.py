"""Prints how far losses and weights of runs are from those of the first one: folders; runs in the trainer image."""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file

VOLATILE = {"time", "num_tokens", "step_time"}


def curve(run: Path) -> dict[tuple[int, str], float]:
    """Every value that was logged of a step of training, each once."""
    lines = [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
    assert len({line["step"] for line in lines}) == len(lines), f"{run}: steps are logged twice"
    return {(line["step"], name): value for line in lines for name, value in line.items() if name not in VOLATILE}


def distance(run: Path, other: Path) -> float:
    """The largest difference of a logged value or a weight; fails if there are not the same steps and weights.

    A run that goes on from another job's checkpoint has logged what came after it.
    """
    losses, others = curve(run), curve(other)
    begin = min(step for step, _ in losses)
    assert losses.keys() == {key for key in others if key[0] >= begin}, (run, begin, len(losses), len(others))
    weights, theirs = (load_file(folder / "final/model.safetensors") for folder in (run, other))
    assert weights.keys() == theirs.keys()
    apart = [abs(value - others[name]) for name, value in losses.items()]
    return max(apart + [(weights[name].float() - theirs[name].float()).abs().max().item() for name in weights])


if __name__ == "__main__":
    first, *rest = map(Path, sys.argv[1:])
    print(json.dumps([distance(each, first) for each in rest]))
