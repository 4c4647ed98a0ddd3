"""Checks on a machine with one GPU what no other test can, part by part, and writes docs/gpu.md.

Any Python with PyTorch does, the rest as wheels; a part whose packages are missing, or that the time does not suffice
for, is written down as not run. `--device cpu --shape tiny` is the dry mode: the same parts at the size of a test,
without a GPU.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import truth
from ranks import Machine, NotRun, Processes, Starter
from truth import Part

CHECKS = {"truth": truth.PARTS}
DRY_LIMIT = 300
"""Seconds of each part in the dry mode, on a CPU that others use too."""


@dataclass(frozen=True)
class Line:
    """How a part ended."""

    part: Part
    outcome: str
    """holds, broken or not run."""
    said: str = ""
    seconds: float = 0


def run(parts: Iterable[Part], machine: Machine, seconds: float) -> Iterator[Line]:
    """Yield a line for each part, in order; one that fails or hangs keeps no other from its turn.

    After `seconds` in all, no further part begins.
    """
    end = time.monotonic() + seconds
    for part in parts:
        start = time.monotonic()
        limit = part.seconds if machine.device == "cuda" else DRY_LIMIT
        machine.deadline = min(start + limit, end)
        if start >= end:
            yield Line(part, "not run", f"the {seconds:.0f} s were over")
            continue
        try:
            said, outcome = "; ".join(f"{name} {value}" for name, value in part.check(machine).items()), "holds"
        except NotRun as missing:
            said, outcome = str(missing), "not run"
        except Exception as error:
            said, outcome = f"{type(error).__name__}: {error}", "broken"
        yield Line(part, outcome, said, time.monotonic() - start)


def report(check: str, lines: list[Line], machine: dict[str, str], shape: str) -> str:
    """Return docs/gpu.md."""
    rows = [
        f"| {line.part.name} | {line.part.promise} | {line.outcome} | {_cell(line.said)} |"
        f" {f'{line.seconds:.0f} s' if line.seconds else ''} |"
        for line in lines
    ]
    where = ", ".join(f"{name} {value}" for name, value in machine.items()) or "no machine with a GPU was at hand"
    return "\n".join(
        [
            "# On a GPU",
            "",
            f"Written by `make gpu-check PART={check}`: shape `{shape}` of `tests/bench/shapes.py`, random weights.",
            f"Machine: {where}.",
            "",
            "| part | what must hold | outcome | measured | took |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:600]


def go(
    check: str, folder: Path, starter: Starter, *, device: str, shape: str, seconds: float
) -> tuple[list[Line], str]:
    """Run a check's parts in `folder`; return their lines, printed as they come, and the report."""
    machine = Machine(folder, starter, device=device, shape=shape)
    lines: list[Line] = []
    machine.prepare()
    for line in run(CHECKS[check], machine, seconds):
        print(f"gpu-check: {line.part.name}: {line.outcome} ({line.seconds:.0f} s) {line.said}", flush=True)
        lines.append(line)
    known = next((job.measures["machine"] for job in machine.done.values()), {})
    return lines, report(check, lines, known, shape)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", default="0.5b")
    parser.add_argument("--seconds", type=float, default=330, help="for all parts (default 330)")
    parser.add_argument("--report", type=Path, help="written when all parts have had their turn")
    parser.add_argument("--nothing", action="store_true", help="run nothing, and write that down")
    given = parser.parse_args()
    if given.nothing:
        text = report(given.check, [Line(part, "not run") for part in CHECKS[given.check]], {}, given.shape)
        lines: list[Line] = []
    else:
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
            processes = Processes(Path(folder))
            try:
                lines, text = go(
                    given.check, Path(folder), processes,
                    device=given.device, shape=given.shape, seconds=given.seconds,
                )  # fmt: skip
            finally:
                processes.close()
    if given.report:
        given.report.write_text(text)
    return int(any(line.outcome == "broken" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
