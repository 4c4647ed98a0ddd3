"""The tables about the control plane say what was measured, and leave the rest of the page alone."""

from pathlib import Path

from controlplane_table import write_tables

BEGIN, END = "<!-- bench-controlplane: begin -->\n", "<!-- bench-controlplane: end -->\n"
MEASURED = {"date": "2026-11-26", "machine": "2 cores", "load_before": 0.5}
OURS = {
    "jobs_per_s": 33.4, "p50_s": 4.1, "p99_s": 9.2, "operator_ms_per_job": 17.5, "apiserver_ms_per_job": 28.0,
    "reads_per_job": 9.0, "writes_per_job": 8.0,
}  # fmt: skip
FLOOR = {"jobs_per_s": 96.6, "p50_s": 0.3, "p99_s": 0.6, "apiserver_ms_per_job": 16.0}
COMPARED = {
    **MEASURED, "pairs": [{}] * 5, "median": {"ours": OURS, "floor": FLOOR},
    "ratio_jobs_per_s": 0.35, "ratio_p50_s": 13.7, "ratio_apiserver_ms_per_job": 1.75,
}  # fmt: skip
IDLE = {
    **MEASURED, "requests_per_s": 310.0, "writes": 0, "operator_core_percent": 39.0, "apiserver_core_percent": 115.0,
    "rss_mib": 120,
}  # fmt: skip


def test_the_page_holds_the_figures_between_its_marks_however_often_it_is_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    found = {"burst-300": COMPARED, "waiting-1000": IDLE, "finished-10000": {**IDLE, "ready_s": 12.0, "peak_mib": 280}}
    write_tables(page, found)
    written = page.read_text()
    write_tables(page, found)
    assert page.read_text() == written
    assert written.startswith(f"before\n{BEGIN}")
    assert written.endswith(f"{END}after\n")
    rows = [line for line in written.splitlines() if line.startswith("| ") and "part" not in line]
    assert len(rows) == 3
    assert "33.4, 96.6, 0.35" in rows[0]
    assert "9 + 8" in rows[0]
    assert "310" in rows[1]
    assert "ready in 12 s, at most 280 MiB" in rows[2]
    assert "old" not in written
