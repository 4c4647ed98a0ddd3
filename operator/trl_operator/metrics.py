"""What both processes count and measure, for Prometheus; docs/metrics.md says what each is good for."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

disable_created_metrics()  # type: ignore[no-untyped-call]

KIND_AND_PHASE = ("kind", "phase")
RECONCILE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
QUEUE_BUCKETS = (0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
JOB_BUCKETS = (60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400, 259200, 604800, 2592000)


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Show what `read` returns whenever somebody asks."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def render(self) -> str:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry).decode()


class ControllerMetrics(Metrics):
    """Every replica counts what it does itself, so that sums over replicas are right."""

    def __init__(self) -> None:
        super().__init__()
        self.reconcile_errors = Counter(
            "trl_operator_reconcile_errors",
            "Looks at a job that failed, or could not boost its priority, by HTTP status or bug.",
            ["status"],
            registry=self.registry,
        )
        self.last_words = Counter(
            "trl_operator_last_words",
            "Progress in exit records that could not be written.",
            ["result"],
            registry=self.registry,
        )
        self.restarts = Counter(
            "trl_operator_restarts", "Attempts after the first, by why.", ["kind", "reason"], registry=self.registry
        )
        self.job_seconds = Histogram(
            "trl_operator_job_seconds",
            "From a job's start to its end.",
            KIND_AND_PHASE,
            buckets=JOB_BUCKETS,
            registry=self.registry,
        )
        self.reconcile_seconds = Histogram(
            "trl_operator_reconcile_seconds",
            "A look at a job.",
            ["kind"],
            buckets=RECONCILE_BUCKETS,
            registry=self.registry,
        )
        self.queue_wait_seconds = Histogram(
            "trl_operator_queue_wait_seconds",
            "From news of a job to the look at it.",
            buckets=QUEUE_BUCKETS,
            registry=self.registry,
        )

    def jobs(self, read: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Show how many jobs there are by kind and phase; a replica that does not lead is to read none."""
        self.registry.register(_Jobs(read))


class ReceiverMetrics(Metrics):
    """Every replica counts the reports that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.reports = Counter(
            "trl_operator_reports", "Reports, by what became of them.", ["result"], registry=self.registry
        )


class _Jobs(Collector):
    def __init__(self, read: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._read = read

    def collect(self) -> Iterable[GaugeMetricFamily]:
        found = GaugeMetricFamily("trl_operator_jobs", "Jobs by phase, shown by the leader.", labels=KIND_AND_PHASE)
        for labels, count in sorted(self._read().items()):
            found.add_metric(labels, count)
        yield found
