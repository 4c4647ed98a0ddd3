"""Progress reports as the receiver takes and writes them, against an API server in memory."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from fake_kube import FakeKube

from trl_operator.cache import Cache
from trl_operator.metrics import Metrics
from trl_operator.receiver import Receiver

PATH = "/apis/trl-operator.io/v1alpha1/namespaces/team/dpojobs/tune/status"


def report(step: int, second: int = 0, percentage: int = 1, **fields: Any) -> dict[str, Any]:
    time = f"2026-11-21T06:{step:02d}:{second:02d}.000000Z"
    ours = {"activity": "training", "step": step, "totalSteps": 40, "lastUpdateTime": time}
    return {"trainerStatus": {"progressPercentage": percentage, "lastUpdatedTime": time}, "trl": {**ours, **fields}}


class World:
    """A running job `tune`, its pod `pod-0-0`, and a receiver."""

    def __init__(self, job: dict[str, Any], pod: dict[str, Any], interval: float = 0.2) -> None:
        self.kube = FakeKube()
        self.cache = Cache(lambda _: None)
        self.metrics = Metrics()
        self.receiver = Receiver(self.kube, self.cache, self.metrics, interval)  # type: ignore[arg-type]
        running = {"attempt": 0, "pytorchJob": {"name": "tune-dpo-0", "uid": "child-0"}}
        self.cache.put_job(self.kube.put("dpojobs", {**job, "status": running}))
        self.cache.put_pod(pod)
        self.client: TestClient[Any, Any] | None = None

    async def post(self, body: dict[str, Any], token: str = "pod-0-0") -> tuple[int, Any]:
        assert self.client is not None
        async with self.client.post(PATH, json=body, headers={"Authorization": f"Bearer {token}"}) as answer:
            return answer.status, await answer.json() if answer.status == 200 else await answer.text()

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.kube.objects["dpojobs", "team", "tune"]["status"])

    def writes(self) -> int:
        return self.kube.writes.count(("trl-operator-progress", "dpojobs"))


@pytest.fixture
def world(job_object: Callable[..., Any], pod_object: Callable[..., Any]) -> World:
    return World(job_object(), pod_object(0))


def run(world: World, test: Callable[[], Awaitable[None]]) -> None:
    """Run `test` while the receiver serves and writes."""

    async def main() -> None:
        async with TestClient(TestServer(world.receiver.application())) as world.client:
            writing = asyncio.create_task(world.receiver.write())
            await asyncio.wait_for(test(), 20)
            assert not writing.done(), "the receiver goes on writing"
            writing.cancel()

    asyncio.run(main())


def test_a_pod_of_another_namespace_may_not_report_whatever_its_labels_say(
    world: World, pod_object: Callable[..., Any]
) -> None:
    foreign, loose = pod_object(0), pod_object(0)
    foreign["metadata"] |= {"namespace": "elsewhere", "uid": "foreign"}
    loose["metadata"] |= {"uid": "loose", "ownerReferences": []}
    world.cache.put_pod(foreign)
    world.cache.put_pod(loose)

    async def test() -> None:
        for token in ("foreign", "loose", "nobody"):
            assert await world.post(report(1), token) == (
                403, "the token's pod does not belong to the job's current attempt",
            )  # fmt: skip
        assert (await world.post(report(1)))[0] == 200

    run(world, test)
