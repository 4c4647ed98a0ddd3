"""Tables of docs/performance.md that commands write."""

from collections.abc import Sequence
from pathlib import Path


def put(page: Path, name: str, lines: Sequence[str]) -> None:
    """Replace what is between the two marks of that name."""
    begin, end = (f"<!-- {name}: {what} -->\n" for what in ("begin", "end"))
    before, _, rest = page.read_text().partition(begin)
    assert end in rest, f"{page} has no place for {name}"
    page.write_text(before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2])
