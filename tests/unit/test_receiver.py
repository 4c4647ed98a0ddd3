"""Progress reports as the receiver takes and writes them, against an API server in memory."""

import asyncio
from collections.abc import Awaitable, Callable
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from fake_kube import FakeKube, token

from trl_operator.errors import ApiError
from trl_operator.metrics import ReceiverMetrics
from trl_operator.receiver.app import Receiver
from trl_operator.receiver.reviews import Reviews
from trl_operator.receiver.store import Store
from trl_operator.receiver.writer import Writer

PLACE = "trl-operator.io/v1alpha1/namespaces/team/dpojobs"
UID = "11111111-2222-3333-4444-555555555555"
AUDIENCE = f"{PLACE}/tune/{UID}"


def report(step: int, second: int = 0, percentage: int = 1, **fields: Any) -> dict[str, Any]:
    time = f"2026-11-21T06:{step:02d}:{second:02d}.000000Z"
    ours = {"activity": "training", "step": step, "totalSteps": 40, "lastUpdateTime": time}
    return {"trainerStatus": {"progressPercentage": percentage, "lastUpdatedTime": time}, "trl": {**ours, **fields}}


class World:
    """A running job `tune`, its pod `pod-0-0`, and a receiver."""

    def __init__(self, job: dict[str, Any], pod: dict[str, Any], interval: float = 0.2, pace: float = 1000) -> None:
        self.kube = FakeKube()
        self.store = Store()
        self.metrics = ReceiverMetrics()
        kube: Any = self.kube
        self.reviews = Reviews(kube)
        self.writer = Writer(kube, self.store, self.metrics, interval, pace)
        self.receiver = Receiver(self.store, self.reviews, self.writer, self.metrics)
        self.objects = job, pod
        self.add("tune", UID)
        self.client: TestClient[Any, Any] | None = None

    def add(self, name: str, uid: str, pod_uid: str = "pod-0-0") -> None:
        """Another running job with its pod."""
        job, pod = deepcopy(self.objects)
        job["metadata"] |= {"name": name, "uid": uid}
        child = {"name": f"{name}-dpo-0", "uid": "child-0"}
        self.store.put_job(self.kube.put("dpojobs", {**job, "status": {"attempt": 0, "workload": child}}))
        pod["metadata"]["uid"] = pod_uid
        pod["metadata"]["ownerReferences"][0] |= child
        pod["metadata"]["labels"] |= {"trl-operator.io/job-uid": uid, "trl-operator.io/job-name": name}
        self.store.put_pod(pod)

    async def post(
        self, body: dict[str, Any], pod: str = "pod-0-0", name: str = "tune", text: str | None = None
    ) -> tuple[int, Any]:
        assert self.client is not None
        audience = AUDIENCE if name == "tune" else f"{PLACE}/{name}/{name}-uid"
        headers = {"Authorization": f"Bearer {text or token(pod, audience)}"}
        async with self.client.post(f"/apis/{PLACE}/{name}/status", json=body, headers=headers) as answer:
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
            working = [asyncio.create_task(work) for work in (world.writer.run(), world.reviews.turns.run())]
            await asyncio.wait_for(test(), 20)
            assert not any(work.done() for work in working), "the receiver goes on"
            for work in working:
                work.cancel()

    asyncio.run(main())


def test_a_pod_of_another_namespace_may_not_report_whatever_its_labels_say(
    world: World, pod_object: Callable[..., Any]
) -> None:
    foreign, loose = pod_object(0), pod_object(0)
    foreign["metadata"] |= {"namespace": "elsewhere", "uid": "foreign"}
    loose["metadata"] |= {"uid": "loose", "ownerReferences": []}
    world.store.put_pod(foreign)
    world.store.put_pod(loose)

    async def test() -> None:
        for pod in ("foreign", "loose"):
            assert await world.post(report(1), pod) == (
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
        assert (progress["display"], progress["percentage"], progress.get("eta")) == ("40/40", 100, None)

    run(world, test)


def test_the_first_checkpoint_is_told_once_by_whoever_wrote_it(world: World) -> None:
    saved = [{"step": step, "path": f"u/checkpoint-{step}", "time": "2026-11-21T06:00:00Z"} for step in (5, 9)]

    def told() -> list[str]:
        return [obj["message"] for (plural, _, _), obj in world.kube.objects.items() if plural == "events"]

    async def test() -> None:
        for number, checkpoints in enumerate(([], saved[:1], saved), 1):
            await world.post(report(number, checkpoints=checkpoints))
            await until(lambda number=number: world.status.get("progress", {}).get("step") == number)  # type: ignore[misc]

    run(world, test)
    assert told() == ["the checkpoint of step 5 is in u/checkpoint-5"]


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
        world.store.put_job(ended)
        assert (await world.post(report(3)))[1] == {"accepted": False, "message": "the job has ended"}

    run(world, test)


@pytest.mark.parametrize(
    ("code", "again"), [(422, False), (403, False), (409, True), (429, True), (500, True), (0, True)]
)
def test_a_report_that_the_api_server_will_never_take_is_dropped_and_counted(
    world: World, code: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trl_operator.receiver.writer.RETRY_SECONDS", 0.05)
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
        world.writer._written["DPOJob", "team", "gone"] = 0.0
        await world.post(report(1))
        await until(lambda: world.writes() == 1)
        await until(lambda: [name for _, _, name in world.writer._written] == ["tune"])

    run(world, test)


NOT_VALID = (401, "the token is not valid for this job")


def test_nobody_is_told_what_jobs_there_are_and_what_looks_wrong_costs_no_review(world: World) -> None:
    async def test() -> None:
        for name in ("tune", "unknown"):
            assert await world.post(report(1), name=name, text="nonsense") == NOT_VALID
            assert await world.post(report(1), name=name, text=token("pod-0-0", "another audience")) == NOT_VALID
            assert await world.post(report(1), name=name, text=token("nobody", AUDIENCE)) == NOT_VALID
            assert await world.post(report(1), name=name, text=token("pod-0-0", AUDIENCE, expires=1e9)) == NOT_VALID
        assert world.kube.reviews == 0
        assert await world.post(report(1), text=token("pod-0-0", AUDIENCE, signature="bad")) == NOT_VALID
        assert world.kube.reviews == 1
        assert world.client is not None
        for path in (f"/apis/{PLACE}/tune/status", f"/apis/{PLACE}/unknown/status"):
            async with world.client.post(path, data=b"{") as answer:
                assert answer.status == 401

    run(world, test)


def test_a_job_whose_writes_hang_delays_no_other_and_is_asked_for_ever_more_seldom(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trl_operator.receiver.writer.WRITE_SECONDS", 0.2)
    monkeypatch.setattr("trl_operator.receiver.writer.RETRY_SECONDS", 0.1)
    get, asked = world.kube.get, 0
    for number in range(30):
        world.add(f"slow-{number}", f"slow-{number}-uid", f"slow-pod-{number}")

    async def hang(resource: Any, namespace: str, name: str) -> Any:
        nonlocal asked
        if name.startswith("slow"):
            asked += 1
            await asyncio.sleep(3600)
        return await get(resource, namespace, name)

    async def test() -> None:
        world.kube.get = hang  # type: ignore[method-assign]
        for number in range(30):
            assert (await world.post(report(1), f"slow-pod-{number}", f"slow-{number}"))[0] == 200
        for step in range(1, 4):
            began = asyncio.get_running_loop().time()
            await world.post(report(step))
            await until(lambda step=step: world.writes() == step)  # type: ignore[misc]
            assert asyncio.get_running_loop().time() - began < 0.6
        before = asked
        await asyncio.sleep(1)
        assert asked - before <= 60, "at 0.1, 0.2, 0.4 and 0.8 s after each other, not at every 0.3 s"
        world.kube.get = get  # type: ignore[method-assign]
        await until(lambda: world.writes() == 33)

    run(world, test)


def test_all_writes_share_one_pace_and_the_oldest_report_goes_first(
    job_object: Callable[..., Any], pod_object: Callable[..., Any]
) -> None:
    world = World(job_object(), pod_object(0), interval=0.01, pace=20)
    for number in range(40):
        world.add(f"job-{number:02d}", f"job-{number:02d}-uid", f"pod-{number}")

    async def test() -> None:
        began = asyncio.get_running_loop().time()
        for step in (1, 2):
            for number in range(40):
                await world.post(report(step), f"pod-{number}", f"job-{number:02d}")
        await until(lambda: len(world.writer.pending) == 0 and not world.writer._writing)
        seconds = asyncio.get_running_loop().time() - began
        assert world.writes() <= 20 + 20 * seconds
        shown = [obj["status"]["progress"]["step"] for (_, _, name), obj in world.kube.objects.items() if "job" in name]
        assert shown == [2] * 40
        assert world.writes() < 80, "of two reports that wait the newer one is written"

    run(world, test)


def test_a_bug_in_one_report_ends_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        def stumble(_: Any) -> None:
            raise ZeroDivisionError

        world.kube.refuse = stumble
        await world.post(report(1))
        await until(lambda: "this is a bug; other jobs go on" in caplog.text)
        world.kube.refuse = lambda _: None
        await world.post(report(2))
        await until(lambda: world.writes() == 1)

    run(world, test)


def test_who_floods_is_told_to_come_again(world: World) -> None:
    async def test() -> None:
        world.reviews.turns._per_source = 0
        status, text = await world.post(report(1))
        assert (status, text) == (429, "too many tokens to check: try again")

    run(world, test)


def test_the_store_keeps_little_and_forgets_what_a_fresh_list_does_not_hold(world: World) -> None:
    key = ("DPOJob", "team", "tune")
    [pod] = world.store.pods.values()
    assert (pod.exit_message, pod.message) == ("", "")
    for watched in world.store.watched():
        watched.sweep(["elsewhere"], set(), 999)
        watched.sweep([], set(), 0)
    assert (key in world.store.jobs, len(world.store.pods)) == (True, 1)
    for watched in world.store.watched():
        watched.sweep([], {UID}, 999)
    assert (key in world.store.jobs, len(world.store.pods)) == (True, 0)
    older = world.kube.objects["dpojobs", "team", "tune"]
    newer = world.kube.put("dpojobs", {**older, "status": {"attempt": 3}})
    world.store.put_job(newer)
    world.store.put_job(older)
    attempt = world.store.jobs[key].attempt
    assert attempt is not None
    assert attempt.number == 3
    [jobs] = [watched for watched in world.store.watched() if watched.resource.plural == "dpojobs"]
    jobs.drop({**older, "metadata": {**older["metadata"], "uid": "another"}})
    assert key in world.store.jobs
    jobs.drop(older)
    assert key not in world.store.jobs
