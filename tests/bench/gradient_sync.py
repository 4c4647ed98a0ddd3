"""What it costs to reduce gradients after every micro-step instead of once a step: several processes, full and LoRA.

Blocks of both kinds alternate in one trainer (blocks.py). A job takes the second where whole gradients fit
(preflight/memory.py). Run it with PYTHONPATH=tests/bench.
"""

import argparse
import json
import tempfile
from pathlib import Path

import shapes
from bench_trainer import environment, num_gpus, said, speed

METHODS = {"full": {"method": "none"}, "LoRA": {"method": "lora", "r": 16}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=shapes.SHAPES, help="default: small, with GPUs 0.5b")
    parser.add_argument("--accumulate", type=int, default=4, help="micro-steps of a step (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=40, help="interleaved pairs of blocks (default %(default)s)")
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps per block (default %(default)s)")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    gpus = num_gpus()
    shape, world = given.shape or ("0.5b" if gpus > 1 else "small"), max(2, gpus)
    found = {"environment": environment(gpus), "processes": world, "shape": shape, "accumulate": given.accumulate}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name, peft in METHODS.items():
            made = Path(folder) / name
            modes = ("each", "ours")
            result = speed(made, shape, world, gpus > 1, given, modes, given.accumulate, peft=peft)
            found[name] = {key: result[key] for key in ("ratio", "cpu_ratio", "step_ms")}
            print(f"{name}: every micro-step / once a step {said(result)}; step {result['step_ms']['ours']:.0f} ms")
    if given.output is not None:
        given.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
