"""What is listed now and then, and what cannot be, against an API server in memory."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from fake_kube import FakeKube

from trl_operator.backend import BACKENDS
from trl_operator.backend.pytorchjob import RESOURCE
from trl_operator.errors import ApiError
from trl_operator.resource import Resource
from trl_operator.store import relist
from trl_operator.store.relist import Relist
from trl_operator.store.store import Store

Refused = dict[tuple[str, str], int]
"""HTTP status by plural and namespace; * stands for all plurals."""


class World:
    """Namespaces a and b with a job each, and a relist of both."""

    def __init__(self, job: Callable[..., dict[str, Any]]) -> None:
        self.kube = FakeKube()
        self.store = Store()
        self.relist = Relist(self.kube, self.store.watched(), ["a", "b"], 0.01)  # type: ignore[arg-type]
        self.refused: Refused = {}
        self.kube.refuse_list = self.refuse
        for namespace in "ab":
            self.add(job, namespace)

    def add(self, job: Callable[..., dict[str, Any]], namespace: str, name: str = "tune") -> None:
        made = job()
        made["metadata"] |= {"namespace": namespace, "name": name}
        self.kube.put("dpojobs", made)

    def refuse(self, plural: str, namespace: str | None) -> None:
        for name in (plural, "*"):
            if status := self.refused.get((name, namespace or "")):
                raise ApiError(status, "no", request=f"GET {plural} in {namespace}")

    @property
    def known(self) -> list[str]:
        return sorted(namespace for _, namespace, _ in self.store.jobs)


@pytest.fixture
def world(job_object: Callable[..., dict[str, Any]]) -> World:
    return World(job_object)


def test_a_namespace_that_is_lost_keeps_no_other_from_going_on(
    world: World, job_object: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        world.refused = {("*", "b"): 403}
        await asyncio.wait_for(world.relist.first(), 2)
        assert (world.known, world.relist.refused, world.relist.exists(RESOURCE)) == (["a"], 7, True)
        assert world.relist.age() < 1
        told = len(caplog.records)
        assert "going on without: 403: GET" in caplog.text
        await world.relist.once()
        assert len(caplog.records) == told, "nothing has changed, so nothing is told"
        world.refused = {}
        await world.relist.once()
        assert (world.known, world.relist.refused) == (["a", "b"], 0)
        assert "dpojobs can be listed again in b" in caplog.text

    asyncio.run(test())


def test_what_is_known_of_a_lost_namespace_stays(world: World) -> None:
    async def test() -> None:
        await world.relist.once()
        world.refused = {("*", "b"): 403}
        world.kube.objects.clear()
        await world.relist.once()
        assert world.known == ["b"]

    asyncio.run(test())


@pytest.mark.parametrize("refused", [{("*", "a"): 403, ("*", "b"): 403}, {("dpojobs", "a"): 503}])
def test_who_can_list_nothing_and_who_meets_an_outage_tries_again(world: World, refused: Refused) -> None:
    async def test() -> None:
        world.refused = refused
        with pytest.raises(ApiError):
            await world.relist.once()
        assert (world.relist.age(), world.relist.exists(RESOURCE)) == (0, False)

    asyncio.run(test())


def test_while_a_kind_is_missing_nothing_is_listed_until_discovery_names_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kopf asks discovery, once, and discovery may be later than lists are."""
    monkeypatch.setattr(relist, "PAUSE_AFTER_FAILURE", 0.01)
    world.relist = Relist(world.kube, world.store.watched(), ["a", "b"], 60.0)  # type: ignore[arg-type]

    async def test() -> None:
        world.refused = {("trainjobs", "a"): 404, ("trainjobs", "b"): 404}
        world.kube.unserved = {"trainjobs"}
        await world.relist.once()
        listed: list[str] = []
        world.kube.refuse_list = lambda plural, _: listed.append(plural)
        changed, asked = asyncio.Event(), 0
        serves = world.kube.serves

        async def count(resource: Resource) -> bool:
            nonlocal asked
            asked += 1
            return await serves(resource)

        monkeypatch.setattr(world.kube, "serves", count)
        keeper = asyncio.create_task(world.relist.keep(changed))
        async with asyncio.timeout(5):
            while asked < 5:
                await asyncio.sleep(0.01)
        assert (listed, changed.is_set()) == ([], False)
        world.kube.unserved = set()
        await asyncio.wait_for(changed.wait(), 5)
        assert "pods" in listed
        keeper.cancel()

    asyncio.run(test())


def test_a_kind_that_is_not_watched_does_not_exist(world: World) -> None:
    store = Store([BACKENDS["pytorchjob"]])
    known = Relist(world.kube, store.watched(), ["a"], 60.0)  # type: ignore[arg-type]
    asyncio.run(known.once())
    found = {name: known.exists(backend.RESOURCE) for name, backend in BACKENDS.items()}
    assert found == {"pytorchjob": True, "trainjob": False}


@pytest.mark.parametrize("plural", ["pytorchjobs", "grpojobs"])
def test_a_kind_that_is_installed_later_is_noticed_and_watched(world: World, plural: str) -> None:
    async def test() -> None:
        world.refused = {(plural, "a"): 404, (plural, "b"): 404}
        await world.relist.once()
        assert world.relist.exists(RESOURCE) == (plural != "pytorchjobs")
        assert world.known == ["a", "b"]
        changed = asyncio.Event()
        keeper = asyncio.create_task(world.relist.keep(changed))
        await asyncio.sleep(0.1)
        assert not changed.is_set()
        world.refused = {("*", "b"): 403}
        await asyncio.wait_for(changed.wait(), 5)
        assert world.relist.exists(RESOURCE)
        keeper.cancel()

    asyncio.run(test())
