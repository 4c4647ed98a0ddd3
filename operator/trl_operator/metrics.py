"""Counters and gauges in Prometheus' text format."""

from collections.abc import Callable


class Metrics:
    """Counters that grow, and gauges that are read when asked for."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._gauges: dict[str, Callable[[], float]] = {}

    def count(self, name: str, **labels: str) -> None:
        """Add one to the counter `name`."""
        key = (name, tuple(sorted(labels.items())))
        self._counters[key] = self._counters.get(key, 0.0) + 1

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        """Show what `read` returns under `name`."""
        self._gauges[name] = read

    def render(self) -> str:
        """Return everything, one sample a line."""
        lines, typed = [], set()
        for (name, labels), value in sorted(self._counters.items()):
            if name not in typed:
                typed.add(name)
                lines.append(f"# TYPE {name} counter")
            text = ",".join(f'{key}="{_escape(item)}"' for key, item in labels)
            lines.append(f"{name}{{{text}}} {value:g}" if text else f"{name} {value:g}")
        for name, read in sorted(self._gauges.items()):
            lines += [f"# TYPE {name} gauge", f"{name} {read():g}"]
        return "\n".join(lines) + "\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
