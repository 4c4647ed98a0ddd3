"""The metrics, and the page that explains them."""

import asyncio
import re
from pathlib import Path

from aiohttp.test_utils import TestClient, TestServer

from trl_operator.health import Health
from trl_operator.metrics import ControllerMetrics, Metrics, ReceiverMetrics

PAGE = Path(__file__).parents[2] / "docs/metrics.md"


def names(*found: Metrics) -> set[str]:
    return set(re.findall(r"^# TYPE (\S+)", "".join(metrics.render() for metrics in found), re.MULTILINE))


def test_every_metric_is_explained_and_every_one_that_is_explained_exists() -> None:
    controller, receiver = ControllerMetrics(), ReceiverMetrics()
    controller.jobs(dict)
    main = Path(__file__).parents[2] / "operator/trl_operator"
    gauges = {
        name
        for file in (main / "__main__.py", main / "receiver/__main__.py")
        for name in re.findall(r'metrics\.gauge\(\s*"(\w+)"', file.read_text())
    }
    explained = set(re.findall(r"^\| `(trl_operator_\w+)", PAGE.read_text(), re.MULTILINE))
    assert names(controller, receiver) | gauges == explained
    assert len(gauges) == 4


def test_jobs_are_shown_by_kind_and_phase_and_by_none_but_the_leader() -> None:
    jobs = {("DPOJob", "Running"): 2, ("SFTJob", "Failed"): 1}
    leads = True
    metrics = ControllerMetrics()
    metrics.jobs(lambda: jobs if leads else {})
    metrics.gauge("trl_operator_leader", "leads", lambda: float(leads))
    assert 'trl_operator_jobs{kind="DPOJob",phase="Running"} 2.0\n' in metrics.render()
    assert 'trl_operator_jobs{kind="SFTJob",phase="Failed"} 1.0\n' in metrics.render()
    leads = False
    assert "trl_operator_jobs{" not in metrics.render()
    assert "trl_operator_leader 0.0\n" in metrics.render()


def test_they_are_served_as_prometheus_asks_for_them() -> None:
    async def main() -> None:
        metrics = ReceiverMetrics()
        metrics.reports.labels("accepted").inc()
        application = Health(lambda: 0.0, 600).application(metrics)
        async with TestClient(TestServer(application)) as client, client.get("/metrics") as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            assert 'trl_operator_reports_total{result="accepted"} 1.0\n' in await answer.text()

    asyncio.run(main())
