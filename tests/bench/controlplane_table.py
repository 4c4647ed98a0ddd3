"""The tables of docs/performance.md about the control plane, made of what was measured."""

from pathlib import Path
from typing import Any

import page

Obj = dict[str, Any]


def write_tables(path: Path, found: dict[str, Obj]) -> None:
    """Write them into the page at `path`."""
    page.put(path, "bench-controlplane", tables(found))


def tables(found: dict[str, Obj]) -> list[str]:
    """Markdown, a line each."""
    compared = {name: part for name, part in found.items() if "pairs" in part}
    idle = {name: part for name, part in found.items() if "pairs" not in part}
    lines = [
        "| part (medians of its pairs) | jobs/s: ours, floor, ratio | p50 | p99 | operator's CPU per job"
        " | API server's CPU per job: ours, floor, ratio | reads + writes per job |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, part in compared.items():
        ours, floor = part["median"]["ours"], part["median"]["floor"]
        lines.append(
            f"| {name}, {len(part['pairs'])} pairs | {ours['jobs_per_s']:g}, {floor['jobs_per_s']:g},"
            f" {part['ratio_jobs_per_s']:g} | {ours['p50_s']:g} s, floor {floor['p50_s']:g} s"
            f" | {ours['p99_s']:g} s, floor {floor['p99_s']:g} s"
            f" | {ours['operator_ms_per_job']:g} ms | {ours['apiserver_ms_per_job']:g} ms,"
            f" {floor['apiserver_ms_per_job']:g} ms, {part['ratio_apiserver_ms_per_job']:g}"
            f" | {ours['reads_per_job']:g} + {ours['writes_per_job']:g} |"
        )
    lines += [
        "",
        "| part | requests/s | writes | leader, % of a core | API server, % of a core | leader's memory | start |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, part in idle.items():
        start = f"ready in {part['ready_s']:g} s, at most {part['peak_mib']} MiB" if "ready_s" in part else ""
        lines.append(
            f"| {name} | {part['requests_per_s']:g} | {part['writes']} | {part['operator_core_percent']:g}"
            f" | {part['apiserver_core_percent']:g} | {part['rss_mib']} MiB | {start} |"
        )
    told = [
        f"{name}: {part['date']}, {part['machine']}, load {part['load_before']:g} before"
        for name, part in found.items()
    ]
    return [*lines, "", "; ".join(told) + "."]
