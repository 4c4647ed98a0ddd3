"""Turns and what the API server is asked about tokens: bounded in all, fair to each source, remembered."""

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import Coroutine
from typing import Any

import pytest

from trl_operator.receiver import reviews as module
from trl_operator.receiver.reviews import Reviews
from trl_operator.receiver.tokens import claims
from trl_operator.receiver.turns import Busy, Pace, Turns

AUDIENCE = "trl-operator.io/v1alpha1/namespaces/team/dpojobs/tune/uid"
NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_pace_allows_a_second_at_once_and_then_so_many_a_second() -> None:
    clock = Clock()
    pace = Pace(10, clock)
    for _ in range(10):
        assert pace.delay() == pytest.approx(0, abs=1e-9)
        pace.take()
    assert pace.delay() == pytest.approx(0.1)
    clock.now += 0.1
    assert pace.delay() == pytest.approx(0, abs=1e-9)
    clock.now += 3600
    for _ in range(10):
        pace.take()
    assert pace.delay() == pytest.approx(0.1), "a long pause saves up no more than a second"


def go(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def test_a_source_that_floods_waits_for_all_others_and_few_of_it_wait() -> None:
    async def test() -> None:
        turns = Turns(Pace(1000), per_source=3)
        order: list[str] = []

        async def ask(source: str) -> None:
            try:
                await turns.take(source)
                order.append(source)
            except Busy:
                order.append(f"{source} is refused")

        asking = [asyncio.create_task(ask(source)) for source in ["flood"] * 5 + ["honest", "other"]]
        await asyncio.sleep(0)
        assert order == ["flood is refused"] * 2
        running = asyncio.create_task(turns.run())
        await asyncio.gather(*asking)
        assert order[2:] == ["flood", "honest", "other", "flood", "flood"]
        running.cancel()

    go(test())


def test_so_many_wait_in_all_and_who_gives_up_makes_room() -> None:
    async def test() -> None:
        turns = Turns(Pace(1000), in_all=2)
        asking = [asyncio.create_task(turns.take(str(number))) for number in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await turns.take("one more")
        for each in asking:
            each.cancel()
        running = asyncio.create_task(turns.run())
        await asyncio.sleep(0.05)
        await asyncio.wait_for(turns.take("one more"), 1)
        assert not turns._waiting
        running.cancel()

    go(test())


# -- claims


def token(payload: Any = None, **changes: Any) -> str:
    body = {"aud": [AUDIENCE], "exp": NOW + 3600, "kubernetes.io": {"pod": {"name": "p", "uid": "pod-1"}}}
    parts = [{"alg": "RS256"}, {**body, **changes} if payload is None else payload]
    return ".".join([*(urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), "c2ln"])


def test_a_token_says_for_whom_and_until_when_it_is_and_of_which_pod() -> None:
    found = claims(token())
    assert found is not None
    assert (found.audiences, found.pod_uid, found.expires) == ((AUDIENCE,), "pod-1", NOW + 3600)
    assert found.fit(AUDIENCE, NOW)
    assert found.fit(AUDIENCE, NOW + 3630), "clocks differ a little"
    assert not found.fit(AUDIENCE, NOW + 3700)
    assert not found.fit(AUDIENCE + "x", NOW)
    single = claims(token(aud=AUDIENCE))
    assert single is not None
    assert single.fit(AUDIENCE, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "a.b", "a.b.c", "..", "a.b.c.d", "é.é.é", token()[:-5], token(payload=[]), token(payload="x"),
        token(exp=None), token(exp="x"), token(exp=10**400), token(aud=7), token(**{"kubernetes.io": {}}),
        token(**{"kubernetes.io": {"pod": {"uid": 7}}}), token(**{"kubernetes.io": {"pod": []}}),
        "W10." + token().split(".")[1] + ".x", "[" * 9999 + ".e30.x",
    ],
)  # fmt: skip
def test_what_is_no_token_of_a_pod_says_nothing(text: str) -> None:
    assert claims(text) is None


# -- reviews


class Asked:
    """Knows a token by its text, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def create(self, _: Any, body: dict[str, Any]) -> dict[str, Any]:
        text = body["spec"]["token"]
        self.asked.append(text)
        user = {"extra": {module.POD_UID: ["pod-1"]}}
        return {"status": {"authenticated": text == "good", "audiences": body["spec"]["audiences"], "user": user}}


def test_an_answer_is_remembered_for_a_minute_whatever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)

    async def test() -> None:
        clock, kube = Clock(), Asked()
        reviews = Reviews(kube, clock, per_second=1000)  # type: ignore[arg-type]
        running = asyncio.create_task(reviews.turns.run())
        for _ in range(3):
            assert await reviews.pod_uid("good", AUDIENCE, "a") == "pod-1"
            assert await reviews.pod_uid("bad", AUDIENCE, "a") is None
        assert kube.asked == ["good", "bad"]
        for number in range(5):
            assert await reviews.pod_uid(f"bad-{number}", AUDIENCE, "a") is None
        await reviews.pod_uid("good", AUDIENCE, "a")
        assert len(kube.asked) == 7, "refusals push out no valid one"
        assert len(reviews._refused._answers) == 3
        await reviews.pod_uid("good", "another audience", "a")
        clock.now += 61
        await reviews.pod_uid("good", AUDIENCE, "a")
        assert kube.asked[7:] == ["good", "good"]
        running.cancel()

    go(test())


def test_a_flood_of_fresh_tokens_costs_the_api_server_a_bounded_number_of_reviews_and_an_honest_source_its_turn() -> (
    None
):
    async def test() -> None:
        kube = Asked()
        reviews = Reviews(kube, per_second=50)  # type: ignore[arg-type]
        running = asyncio.create_task(reviews.turns.run())
        refused = 0

        async def flood(source: str) -> None:
            nonlocal refused
            for number in range(200):
                try:
                    await reviews.pod_uid(f"{source}-{number}", AUDIENCE, source)
                except Busy:
                    refused += 1
                    await asyncio.sleep(0.001)

        began = asyncio.get_running_loop().time()
        floods = [asyncio.create_task(flood(f"{n % 20}")) for n in range(200)]
        await asyncio.sleep(1.5)
        before = asyncio.get_running_loop().time()
        assert await reviews.pod_uid("good", AUDIENCE, "honest") == "pod-1"
        ended = asyncio.get_running_loop().time()
        assert ended - before < 2, "twenty sources before it, at 50 a second"
        assert len(kube.asked) <= 50 + 50 * (ended - began) + 1
        assert refused > 0
        for each in floods:
            each.cancel()
        running.cancel()

    go(test())


def test_who_waits_too_long_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.05)

    async def test() -> None:
        with pytest.raises(Busy):
            await Reviews(Asked()).pod_uid("good", AUDIENCE, "a")  # type: ignore[arg-type]

    go(test())
