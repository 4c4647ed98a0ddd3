"""What the kill matrix has found, kept part by part, and docs/kill-matrix.md made of it."""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from operations import ENGINES, PARTS

Obj = dict[str, Any]


def keep(section: str, part: str, **found: Any) -> None:
    """Print what was found, and keep it for docs/ if it was for real (KILLS_REPORT names the file)."""
    print(f"\n{section} {part}: {json.dumps(found)}")
    if path := os.environ.get("KILLS_REPORT"):
        file = Path(path)
        known: Obj = json.loads(file.read_text()) if file.exists() else {}
        known.setdefault(section, {})[part] = {**found, "date": str(datetime.now().date())}
        file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        file.with_suffix(".md").write_text(report(known))


def report(known: Obj) -> str:
    """Markdown of all that was found so far; its third line is the summary."""
    matrix: Obj = known.get("matrix", {})
    kills = sum(part["kills"] for part in matrix.values())
    random: Obj = known.get("random", {})
    leaders: Obj = known.get("two leaders", {})
    faults = sum(sum(part["faults"].values()) for part in random.values())
    parts = ["DPOJob start", *(" ".join(part) for part in (*PARTS, *ENGINES))]
    missing = sorted(set(parts) - matrix.keys())
    among = f" ({len(matrix)} of {len(parts)} parts)" if missing else ""
    which = "in the parts that were run and passed, " if missing else ""
    lines = [
        "# Kill matrix",
        "",
        f"{kills} kills of the operator at chosen calls{among}, {faults} random kills and faults, {len(leaders)} writes"
        f" of a leader that was frozen until another one led: {which}every job came to the end that an undisturbed one"
        " has, every attempt had one workload, none was lost, all invariants held at every event.",
        "",
        "`make kill-matrix` (`PART=kills`, `PART=DPOJob`, `PART=storm`, `PART=leaders`: a part). The API server, the"
        " controllers, training-operator, Trainer, JobSet and Kueue are real, the node is a fake one; the operator is"
        " forked from a process that has imported its modules. A part that fails is not written down.",
        "",
        f"## At every call: {len(matrix)} of {len(parts)} parts",
        "An operation is first done to one job undisturbed, which shows its calls. Then it is done to another job for"
        " every call, and the operator is killed by SIGKILL just before the API server gets that call, or when it has"
        " answered and the operator does not know. A call that does not come again kills nobody. `start` is the"
        " operator's own, beside a job that runs.",
        *(["", f"**Not run, or not passed: {'; '.join(missing)}.**"] if missing else []),
        "",
        "| kind | operation | calls | of which writes | kills | calls that did not come again | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, part in sorted(matrix.items()):
        kind, _, operation = name.partition(" ")
        missed = ", ".join(part["missed"]) or "none"
        lines.append(
            f"| {kind} | {operation} | {part['calls']} | {part['writes']} | {part['kills']} | {missed}"
            f" | {part['seconds']:.0f} |"
        )
    lines += ["", "## At random", "| jobs | kills and faults | ends | starts of the operator | seconds |"]
    lines += ["|---|---|---|---|---|"]
    for part in random.values():
        told, ends = (", ".join(f"{n} {what}" for what, n in part[key].items()) for key in ("faults", "ends"))
        lines.append(f"| {part['jobs']} | {told} | {ends} | {part['starts']} | {part['seconds']:.0f} |")
    lines += [
        "",
        "## Two leaders",
        "The leader is stopped (SIGSTOP) at a write, which the network holds back until the other replica leads and has"
        " done the work; then the write arrives, and the old leader wakes up.",
        "",
        "| write | answer when it arrived late | the old leader's exit code |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {part['code']} | {part['exit']} |" for name, part in leaders.items()]
    dates = {part["date"] for parts in known.values() for part in parts.values()}
    return "\n".join([*lines, "", f"Measured on {', '.join(sorted(dates))}, {os.cpu_count()} cores."]) + "\n"
