"""`make memory-table`: what a GPU process needs, as preflight estimates it and as torch's tracker counts it.

The tracker's numbers are kept in docs/memory.json and the table is made of them: after a change of the estimate alone,
`--only nothing` writes the table anew in a minute.
"""

import argparse
import dataclasses
import json
import multiprocessing
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import host_memory
from memory_tracker import SHAPES, Case

PAGE = """\
# What a GPU needs: the estimate against torch's count
`make memory-table` writes this page from docs/memory.json. {counted} cases.{left} Of the {above} that need more than
10 GB, {within} are estimated within 15 %; the estimate is {worst} of the count.

- **Counted** by torch's FSDPMemTracker (with one process MemTracker) under fake tensors and a fake process group: the
  last micro-step of four, with the gradients of those before, in bf16 (docs/architecture.md: parameters bf16, reduction
  fp32, fp32 master weights), 4 rows of 1,024 tokens with padding unless the case says so; dpo's reference and grpo's
  generation of 16 answers; AdamW's states from the shards' sizes. A model of all blocks is counted from models of 3 and
  4: blocks are alike, and the counts of 8 whole models were the same.
- **Not counted, nor estimated**: the CUDA context, NCCL's buffers, what the allocator loses. A job fits when the
  estimate is at most 92 % of the GPU.
- **Not the real thing**: the fused head's kernels work in place on a GPU, and 4-bit layers are a layer of their sizes.
- The estimate is for the longest row; with one micro-step a step it counts gradients and activations together, although
  they do not meet. Mixtures of experts and other attention than sdpa were not counted.

GiB per process. `keep`: activations kept, `recompute`: gradient checkpointing; the number is that of processes.

| case | counted | estimate | | weights | gradients | optimizer | gathered | beside | activations |
|---|---|---|---|---|---|---|---|---|---|
{rows}
"""

METHODS = ("full", "lora", "qlora")
STAGES = ("sft", "dpo", "grpo")


def cases() -> Iterator[Case]:
    """Yield the cases: the whole grid, with recomputed activations from 8B on, then single changes of some of it."""
    for shape, method, world, stage in product(SHAPES, METHODS, (1, 8, 64), STAGES):
        yield Case(shape, method, world, shape in ("8B", "32B", "70B"), stage=stage)
    for method, stage in product(METHODS, ("sft", "dpo")):
        yield Case("8B", method, 8, False, stage=stage)
        yield Case("1.5B", method, 8, True, stage=stage)
    yield Case("32B", "lora", 64, False)
    yield Case("70B", "lora", 64, False)
    yield Case("8B", "lora", 1, False)
    yield Case("8B", "full", 1, False)
    yield Case("8B", "lora", 8, False, rows=1, length=4096)
    yield Case("8B", "full", 64, True, rows=1, length=8192)
    yield Case("70B", "lora", 8, True, rows=2, length=8192)
    yield Case("32B", "qlora", 8, True, rows=2, length=8192, stage="dpo")
    for shape, method, stage in (("1.5B", "full", "sft"), ("8B", "full", "dpo"), ("8B", "lora", "sft")):
        yield Case(shape, method, 8, shape == "8B", whole_gradients=True, stage=stage)
    yield Case("32B", "full", 64, True, whole_gradients=True)


def name(case: Case) -> str:
    kept = "recompute" if case.checkpointing else "keep"
    grads = " whole-gradients" if case.whole_gradients else ""
    rows = "" if (case.rows, case.length) == (4, 1024) else f" {case.rows}x{case.length}"
    return f"{case.shape} {case.method} {case.stage} {case.world} {kept}{grads}{rows}"


def tracked(some: list[Case]) -> list[tuple[str, dict[str, Any]]]:
    """Return what the tracker says of cases with one model; a process runs this."""
    from memory_tracker import generation, micro_step, reference_pass, track

    found = []
    for case in some:
        found.append((name(case), {"case": dataclasses.asdict(case), **track(case)}))
        print(f"{found[-1][0]}: {found[-1][1]['peak'] / 2**30:.1f} GiB", flush=True)
    for function in (micro_step, reference_pass, generation):
        function.cache_clear()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="pattern of the cases to track; the others keep their numbers")
    parser.add_argument("--missing", action="store_true", help="track only cases that have no numbers yet")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--numbers", type=Path, default=Path("docs/memory.json"))
    parser.add_argument("--table", type=Path, default=Path("docs/memory.md"))
    given = parser.parse_args()
    numbers = json.loads(given.numbers.read_text()) if given.numbers.exists() else {}
    groups: dict[Any, list[Case]] = {}
    for case in cases():
        if re.search(given.only, name(case)) and not (given.missing and name(case) in numbers):
            groups.setdefault(case.shard, []).append(case)
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        for some in pool.imap_unordered(tracked, groups.values()):
            numbers |= dict(some)
            order = [name(case) for case in cases()]
            kept = {key: numbers[key] for key in order if key in numbers}
            given.numbers.write_text(json.dumps(kept) + "\n")
    _, *host = given.table.read_text().partition(host_memory.TITLE)
    given.table.write_text(table(json.loads(given.numbers.read_text())) + "".join(host))


def table(numbers: dict[str, Any]) -> str:
    """Return the page: what is counted and how, how far the estimate is off, and all cases."""
    from memory_estimate import estimate

    rows, errors = [], []
    for key, found in numbers.items():
        needs = estimate(Case(**found["case"]))
        error = needs.total / found["peak"] - 1
        errors += [error] if found["peak"] > 10e9 else []
        parts = (needs.weights, needs.gradients, needs.optimizer, needs.gathered, needs.beside, needs.activations)
        columns = [f"{count / 2**30:.1f}" for count in (found["peak"], needs.total, *parts)]
        rows.append(f"| {key} | {columns[0]} | {columns[1]} | {100 * error:+.1f} % | {' | '.join(columns[2:])} |")
    within = sum(abs(error) <= 0.15 for error in errors)
    worst = f"between {100 * min(errors):+.1f} % and {100 * max(errors):+.1f} %" if errors else "nowhere"
    missing = sum(1 for case in cases() if name(case) not in numbers)
    left = f" {missing} of {missing + len(numbers)} cases are not counted yet: `make memory-table`." if missing else ""
    return PAGE.format(
        counted=len(numbers), left=left, above=len(errors), within=within, worst=worst, rows="\n".join(rows)
    )


if __name__ == "__main__":
    main()
