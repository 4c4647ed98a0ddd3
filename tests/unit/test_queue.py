"""The work queue: each key once at a time, none forgotten, failures with growing pauses."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise

import pytest

from trl_operator.store.queue import WorkQueue


def run(test: Callable[[WorkQueue[str]], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(test(WorkQueue()), 10)

    asyncio.run(main())


def test_a_key_that_waits_is_not_added_twice() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        for key in ("a", "b", "a"):
            queue.add(key)
        assert [await queue.get(), await queue.get()] == ["a", "b"]
        assert len(queue) == 0

    run(test)


def test_a_key_that_is_worked_on_waits_until_that_is_done() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        assert len(queue) == 0
        queue.done("a")
        assert await queue.get() == "a"
        queue.done("a")
        assert len(queue) == 0

    run(test)


def test_of_two_planned_looks_the_earlier_one_counts() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        queue.add_later("a", 60)
        queue.add_later("a", 0.05)
        queue.add_later("a", 30)
        assert await queue.get() == "a"
        assert 0.04 < loop.time() - started < 5

    run(test)


def test_an_event_overtakes_a_planned_look() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        queue.add_later("a", 0.05)
        queue.add("a")
        assert await queue.get() == "a"
        queue.done("a")
        await asyncio.sleep(0.1)
        assert len(queue) == 0

    run(test)


def test_failures_in_a_row_pause_longer_and_success_forgets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(queue: WorkQueue[str]) -> None:
        pauses: list[float] = []
        monkeypatch.setattr(queue, "add_later", lambda _, seconds: pauses.append(seconds))
        for _ in range(12):
            queue.failed("a")
        assert all(later > earlier for earlier, later in pairwise(pauses[:8]))
        assert max(pauses) <= 60 * 1.2
        queue.succeeded("a")
        queue.failed("a")
        assert pauses[-1] < 0.25
        queue.failed("a", at_least=7.5)
        assert pauses[-1] == 7.5

    run(test)


def test_no_event_shortens_the_rest_of_a_key_that_has_failed() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        loop = asyncio.get_running_loop()
        queue.add("a")
        key = await queue.get()
        started = loop.time()
        queue.add(key)
        queue.failed(key, at_least=0.3)
        queue.done(key)
        queue.add(key)
        queue.add_later(key, 0.0)
        queue.add("b")
        assert await queue.get() == "b", "others go on"
        assert await queue.get() == "a"
        assert loop.time() - started >= 0.29
        queue.done("a")
        queue.add("a")
        assert len(queue) == 1, "it has rested"

    run(test)


def test_a_job_whose_own_failures_are_told_as_events_is_tried_at_the_pace_of_its_backoff() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        loop, tried = asyncio.get_running_loop(), 0
        queue.add("a")
        until = loop.time() + 2
        while loop.time() < until:
            with suppress(TimeoutError):
                async with asyncio.timeout(until - loop.time()):
                    key = await queue.get()
                    tried += 1
                    queue.add(key)  # the echo of the status that tells the failure
                    queue.failed(key)
                    queue.done(key)
                    queue.add(key)
        assert 2 <= tried <= 5, "0.2 + 0.4 + 0.8 s"

    run(test)


def test_every_key_is_worked_on_by_one_worker_at_a_time_and_none_is_lost() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        working: set[str] = set()
        wanted, seen = dict.fromkeys("abcde", 0), dict.fromkeys("abcde", 0)

        async def work() -> None:
            while True:
                key = await queue.get()
                assert key not in working
                working.add(key)
                before = wanted[key]
                await asyncio.sleep(0)
                working.discard(key)
                seen[key] = before
                queue.done(key)

        workers = [asyncio.create_task(work()) for _ in range(3)]
        for number in range(1, 200):
            key = "abcde"[number % 5]
            wanted[key] = number
            queue.add(key)
            if number % 7 == 0:
                await asyncio.sleep(0)
        while len(queue) or working or seen != wanted:
            await asyncio.sleep(0)
        for worker in workers:
            worker.cancel()

    run(test)


def test_the_age_of_the_head_is_known() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        assert queue.oldest_seconds() == 0
        queue.add("a")
        await asyncio.sleep(0.05)
        queue.add("a")
        assert queue.oldest_seconds() > 0.04

    run(test)
