"""`make host-memory`: how much memory of the host each phase of a job takes, all ranks together; in docs/memory.md.

A model of about 400 MB in fp32 is trained for one step by four CPU processes. A rank notes its anonymous memory
(RssAnon) when a phase begins; until the first rank is through with it, this process looks at all ranks a hundred times
a second. What a phase takes of a rank is its highest memory less that at the beginning; the ranks' are summed. Pages of
mapped files are no anonymous memory: the kernel takes them back when it needs them.
"""

import ctypes
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shapes
from safetensors.torch import load_file, save_file
from trainer_kit import Warm, warm_process

TITLE = "# What the host needs: all processes of a node"
PAGE = """\
`make host-memory` writes this part: four CPU processes, a model of about 400 MB in fp32 files or half of that in bf16,
anonymous memory (RssAnon) above that before the phase, the sum of each process's highest. Loading is from before the
model until it is sharded, shards included, in sizes of what is loaded (4-bit layers at half a byte a value; with full
fine-tuning dpo's reference too); exporting is all of `final/`, merge included, in sizes of the model's files. About
10 MB of a process are not weights. With qlora each process also takes 30 bytes for each value of the largest layer
while bitsandbytes chooses its 4 bits: here that is most of its row, on a GPU it lies there. preflight (`explain` shows
it) takes the formulas of `preflight/host.py`: while loading {loading} of the shards that stay in the host's memory,
or {converting} of the model where transformers makes its weights of other tensors (fused experts: not in the table,
tests/trainer/test_loading.py holds that).

| model | job | loading | | rank 0 | exporting | | rank 0 |
|---|---|---|---|---|---|---|---|
{rows}
"""
PHASES = {"load": ("trl_trainer.rank", "build"), "export": ("trl_trainer.results.export", "write")}
"""The function whose calls are a phase."""
WORLD = 4


@dataclass(frozen=True)
class Case:
    stored: str
    method: str
    precision: str


CASES = (
    Case("fp32", "none", "fp32"),
    Case("bf16", "none", "bf16"),
    Case("bf16", "lora", "bf16"),
    Case("fp32", "lora", "bf16"),
    Case("bf16", "lora", "fp32"),
    Case("bf16", "qlora", "bf16"),
)


def main() -> None:
    from trl_trainer.preflight import host

    rows = []
    with tempfile.TemporaryDirectory(prefix="host-memory-") as folder, warm_process(Path(folder)) as warm:
        for case in CASES:
            rows.append(row(case, measure(warm, Path(folder, f"case-{len(rows)}"), case)))
            print(rows[-1], flush=True)
    page = Path("docs/memory.md")
    others, *_ = page.read_text().partition(TITLE)
    text = PAGE.format(loading=host.LOADING, converting=host.CONVERTING, rows="\n".join(rows))
    page.write_text(f"{others.rstrip()}\n\n{TITLE}\n{text}")


def row(case: Case, found: dict[str, Any]) -> str:
    cells = [f"{case.stored} files", f"{case.method.replace('none', 'full')} in {case.precision}"]
    for phase, size in (("load", found["loaded"]), ("export", found["stored"])):
        ranks = found["phases"][phase]
        cells += [
            f"{sum(ranks) / 1e6:.0f} of {size / 1e6:.0f} MB",
            f"{sum(ranks) / size:.2f}",
            f"{ranks[0] / 1e6:.0f} MB",
        ]
    return f"| {' | '.join(cells)} |"


def measure(warm: Warm, folder: Path, case: Case) -> dict[str, Any]:
    """Return the model's bytes in its files and as it is loaded and, for each phase, by how many each rank's grew."""
    peft = {"method": case.method}
    path = shapes.make_job(folder, shapes.SHAPES["host"], world=WORLD, gpus=False, steps=1, rows=16, peft=peft)
    job = json.loads(path.read_text())
    job["spec"]["training"]["precision"] = case.precision
    path.write_text(json.dumps(job))
    model, notes = folder / "model", folder / "notes"
    if case.stored == "bf16":
        halve(model)
    notes.mkdir()
    ranks = warm.start(path, WORLD, {"NOTES": str(notes)}, ["import host_memory; host_memory.note_phases()"])
    grown: dict[str, list[int]] = {phase: [0] * WORLD for phase in PHASES}
    while not ranks.ended():
        for phase in PHASES:
            if not list(notes.glob(f"{phase}.*.ended")):
                for began in notes.glob(f"{phase}.*.began"):
                    rank = int(began.name.split(".")[1])
                    before = int(began.read_text())
                    grown[phase][rank] = max(grown[phase][rank], anonymous(ranks.pids[rank]) - before)
        time.sleep(0.005)
    ended = ranks.wait()
    if set(ended.codes) != {0}:
        raise SystemExit("\n".join(ended.logs))
    for note in notes.glob("*.ended"):
        # On a busy machine the last of it may not have been seen.
        phase, rank = note.name.split(".")[0], int(note.name.split(".")[1])
        before = int(note.with_suffix(".began").read_text())
        grown[phase][rank] = max(grown[phase][rank], int(note.read_text()) - before)
    tensors = {name: value for file in model.glob("*.safetensors") for name, value in load_file(file).items()}
    compute = 2 if case.precision == "bf16" else 4
    # Full fine-tuning (dpo) loads its reference too.
    width = 4 + compute if case.method == "none" else compute
    return {
        "stored": sum(value.nbytes for value in tensors.values()),
        "loaded": sum(
            value.numel() * (0.5 if case.method == "qlora" and value.ndim == 2 and ".layers." in name else width)
            for name, value in tensors.items()
        ),
        "phases": grown,
    }


def halve(folder: Path) -> None:
    """Bring the model in `folder` to bf16."""
    import torch

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    for file in folder.glob("*.safetensors"):
        save_file({name: value.to(torch.bfloat16) for name, value in load_file(file).items()}, file, {"format": "pt"})


def note_phases() -> None:
    """In a rank: note the beginning and the end of each phase."""
    import importlib

    # Counted before the model is.
    import bitsandbytes  # noqa: F401

    from trl_trainer.preflight import image

    # Memory of large temporary tensors goes back at once, and is not taken for that of shards (M_MMAP_THRESHOLD).
    assert ctypes.CDLL("libc.so.6").mallopt(-3, 2**20) == 1
    # qlora is refused without a GPU, for its speed.
    image.check = lambda *given: None
    for phase, (module, name) in PHASES.items():
        place = importlib.import_module(module)
        setattr(place, name, noted(phase, getattr(place, name)))


def noted(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    note = Path(os.environ["NOTES"], f"{phase}.{os.environ['RANK']}")

    def write(name: str) -> None:
        part = Path(f"{note}.part")
        part.write_text(str(anonymous(os.getpid())))
        part.rename(f"{note}.{name}")

    def call(*args: Any, **kwargs: Any) -> Any:
        # What earlier phases freed goes back, so that it hides nothing of what this one takes.
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        write("began")
        found = function(*args, **kwargs)
        write("ended")
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
    main()
