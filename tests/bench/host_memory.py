"""`make host-memory`: how much memory of the host each phase of a job takes, all ranks together.

A model of about 400 MB is trained for one step by four CPU processes. A rank notes its anonymous memory (RssAnon) when
a phase begins; until the first rank is through with it, this process looks at all ranks a hundred times a second. What
a phase takes of a rank is its highest memory less that at the beginning; the ranks' are summed. Pages of mapped files
are no anonymous memory: the kernel takes them back when it needs them.
"""

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shapes
from safetensors.torch import load_file

PHASES = {"load": ("trl_trainer.rank", "build"), "export": ("trl_trainer.results.export", "write")}
"""The function whose calls are a phase."""
JOBS: dict[str, dict[str, Any]] = {"full": {"method": "none"}, "lora": {"method": "lora", "r": 16}}
WORLD = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", nargs="*", choices=PHASES, default=[*PHASES])
    parser.add_argument("--shapes", nargs="*", choices=["dense", "experts"], default=["dense", "experts"])
    given = parser.parse_args()
    print("| model | job | phase | model's bytes | all ranks | share | rank 0 |\n|---|---|---|---|---|---|---|")
    for shape in given.shapes:
        for name, peft in JOBS.items():
            with tempfile.TemporaryDirectory(prefix="host-memory-") as folder:
                report(shape, name, measure(Path(folder), shape, peft, given.phases))


def report(shape: str, name: str, found: dict[str, Any]) -> None:
    size = found["model"]
    for phase, ranks in found["phases"].items():
        total = sum(ranks)
        print(
            f"| {shape} | {name} | {phase} | {size / 1e6:.0f} MB | {total / 1e6:.0f} MB | {total / size:.2f}"
            f" | {ranks[0] / 1e6:.0f} MB |",
            flush=True,
        )


def measure(folder: Path, shape: str, peft: dict[str, Any], phases: list[str]) -> dict[str, Any]:
    """Return the model's bytes and, for each phase, by how many each rank's memory grew."""
    job = shapes.make_job(folder, shapes.SHAPES["host"], world=WORLD, gpus=False, steps=1, rows=16, peft=peft)
    model, notes = folder / "model", folder / "notes"
    if shape == "experts":
        make_experts(model)
    notes.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}"]
    process = subprocess.Popen(
        [*torchrun, __file__, "--rank", str(job), *phases],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NOTES": str(notes)},
        stdout=subprocess.DEVNULL,
    )
    grown: dict[str, list[int]] = {phase: [0] * WORLD for phase in phases}
    while process.poll() is None:
        for phase in phases:
            if not list(notes.glob(f"{phase}.*.ended")):
                for rank, began in enumerate(sorted(notes.glob(f"{phase}.*.began"))):
                    pid, before = map(int, began.read_text().split())
                    grown[phase][rank] = max(grown[phase][rank], anonymous(pid) - before)
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit("a rank failed: its log is above")
    size = sum(value.nbytes for path in model.glob("*.safetensors") for value in load_file(path).values())
    return {"model": size, "phases": grown}


def make_experts(folder: Path) -> None:
    """Put a model in place of the one in `folder` whose experts are converted when they are loaded and saved."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=2048, hidden_size=1024, moe_intermediate_size=512, intermediate_size=1024, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=2, head_dim=128, num_experts=8, num_experts_per_tok=2,
        tie_word_embeddings=True, pad_token_id=0, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(shapes.SEED)
    Qwen3MoeForCausalLM(config).save_pretrained(folder)


def rank_main(job: str, phases: list[str]) -> None:
    """One rank: the trainer's own main, with a note at the beginning and the end of each phase."""
    import importlib

    from trl_trainer.__main__ import main as trainer_main

    for phase in phases:
        module, name = PHASES[phase]
        place = importlib.import_module(module)
        setattr(place, name, noted(phase, getattr(place, name)))
    sys.argv = ["trl_trainer", "--job", job]
    trainer_main()


def noted(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    note = Path(os.environ["NOTES"], f"{phase}.{os.environ['RANK']}")

    def call(*args: Any, **kwargs: Any) -> Any:
        # What earlier phases freed goes back, so that it hides nothing of what this one takes.
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        part = Path(f"{note}.part")
        part.write_text(f"{os.getpid()} {anonymous(os.getpid())}")
        part.rename(f"{note}.began")
        found = function(*args, **kwargs)
        Path(f"{note}.ended").touch()
        return found

    return call


def anonymous(pid: int) -> int:
    """Return the bytes of a process's anonymous memory; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank_main(sys.argv[2], sys.argv[3:])
    else:
        main()
