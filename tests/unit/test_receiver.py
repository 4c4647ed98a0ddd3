"""Progress reports as the receiver takes and writes them, against an API server in memory."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from fake_kube import FakeKube

from trl_operator.cache import Cache
from trl_operator.errors import ApiError
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
        self.cache = Cache()
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


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


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


def test_the_report_that_all_is_done_is_written_at_once(job_object: Callable[..., Any], pod_object: Any) -> None:
    world = World(job_object(), pod_object(0), interval=3600)

    async def test() -> None:
        assert (await world.post(report(1)))[1]["accepted"] is True
        await until(lambda: world.writes() == 1)
        await world.post(report(39))
        await world.post(report(40, percentage=99))
        await asyncio.sleep(0.1)
        assert world.writes() == 1, "everything else waits for its turn"
        await world.post(report(40, second=1, percentage=100, etaSeconds=7))
        await until(lambda: world.writes() == 2)
        progress = world.status["progress"]
        assert (progress["display"], progress["percentage"], progress["eta"]) == ("40/40", 100, "0s")

    run(world, test)


def test_a_pod_that_is_done_again_and_again_waits_for_its_turn(job_object: Callable[..., Any], pod_object: Any) -> None:
    world = World(job_object(), pod_object(0), interval=3600)

    async def test() -> None:
        await world.post(report(40, percentage=100))
        await until(lambda: world.writes() == 1)
        for second in range(1, 10):
            assert (await world.post(report(40, second=second, percentage=100)))[1]["accepted"] is True
        await asyncio.sleep(0.1)
        assert world.writes() == 1

    run(world, test)


def test_a_forged_report_does_not_silence_the_attempt(world: World) -> None:
    async def test() -> None:
        far = {"totalSteps": 2**31 - 1, "lastUpdateTime": "2099-01-01T00:00:00Z"}
        forged, beyond = report(2, **far), report(3)
        for body in (forged, beyond):
            body["trl"]["step"] = 2**31 - 1
        assert (await world.post(forged))[1]["accepted"] is True
        assert "beyond the last one, 40" in (await world.post(beyond))[1]["message"]
        await until(lambda: world.writes() == 1)
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        assert (await world.post(report(5, lastUpdateTime=time)))[1]["accepted"] is True
        await until(lambda: world.status["progress"]["display"] == "5/40")

    run(world, test)


def test_nothing_is_written_into_a_job_that_has_ended(world: World) -> None:
    async def test() -> None:
        assert (await world.post(report(1)))[1]["accepted"] is True
        await until(lambda: world.writes() == 1)
        assert (await world.post(report(2)))[1]["accepted"] is True
        # The job ends while the report waits for its turn, and the watch has not told of it.
        job = world.kube.objects["dpojobs", "team", "tune"]
        ended = world.kube.put(
            "dpojobs", {**job, "status": {**job["status"], "completionTime": "2026-11-21T07:00:00Z"}}
        )
        await asyncio.sleep(0.5)
        assert (world.writes(), world.status["progress"]["step"]) == (1, 1)
        world.cache.put_job(ended)
        assert (await world.post(report(3)))[1] == {"accepted": False, "message": "the job has ended"}

    run(world, test)


@pytest.mark.parametrize(
    ("code", "again"), [(422, False), (403, False), (409, True), (429, True), (500, True), (0, True)]
)
def test_a_report_that_the_api_server_will_never_take_is_dropped_and_counted(
    world: World, code: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trl_operator.receiver.RETRY_SECONDS", 0.05)
    refusals = 0

    def refuse(_: Any) -> None:
        nonlocal refusals
        refusals += 1
        raise ApiError(code, "no")

    async def test() -> None:
        world.kube.refuse = refuse
        await world.post(report(1))
        await until(lambda: refusals == (2 if again else 1))
        await asyncio.sleep(0.2)
        assert (refusals > 1) == again
        assert ('result="refused-by-api-server"} 1' in world.metrics.render()) != again
        world.kube.refuse = lambda _: None
        await world.post(report(2))
        await until(lambda: world.writes() >= 1)
        await until(lambda: world.status["progress"]["step"] == 2)

    run(world, test)


def test_a_report_that_the_status_cannot_hold_is_refused_with_the_reason(world: World) -> None:
    async def test() -> None:
        for text in ("20261121T060000Z", "2026-11-21 06:00:00Z"):
            status, answer = await world.post(report(5, lastUpdateTime=text))
            assert (status, answer["accepted"]) == (200, False)
            assert "not RFC 3339" in answer["message"]
        status, text = await world.post(report(5, etaSeconds=2**31))
        assert (status, text) == (400, "trl.etaSeconds: Input should be less than or equal to 2147483647")
        huge = {"name": "current_step", "value": "1e300"}
        stock = {"trainerStatus": {"lastUpdatedTime": "2026-11-21T06:00:00Z", "metrics": [huge]}}
        assert (await world.post(stock))[1]["accepted"] is True

    run(world, test)


def test_jobs_that_have_reported_once_do_not_pile_up(world: World) -> None:
    async def test() -> None:
        world.receiver._written["DPOJob", "team", "gone"] = 0.0
        await world.post(report(1))
        await until(lambda: world.writes() == 1)
        await until(lambda: [name for _, _, name in world.receiver._written] == ["tune"])

    run(world, test)
