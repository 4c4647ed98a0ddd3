"""ConfigMaps that jobs wait for: looked at at a bounded pace, and told when they change."""

import asyncio
from typing import Any

from trl_operator.errors import ApiError
from trl_operator.resource import Resource
from trl_operator.store.polling import Polling
from trl_operator.store.store import Store

KEY = ("DPOJob", "team", "tune")


class Kube:
    """Counts the looks; `versions` are those of the ConfigMaps that are there."""

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}
        self.looks: list[str] = []
        self.away = False

    async def version(self, resource: Resource, namespace: str, name: str) -> str | None:
        self.looks.append(name)
        if self.away:
            raise ApiError(503, "away")
        return self.versions.get(name)


class World:
    def __init__(self, per_second: float) -> None:
        self.kube, self.store, self.changed = Kube(), Store(), []
        self.store.follow(self.changed.append)
        self.polling = Polling(self.kube, self.store.waiting, per_second)  # type: ignore[arg-type]

    async def until(self, holds: Any) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.005)


def test_who_waits_is_woken_when_the_config_map_is_there_and_when_it_changes() -> None:
    async def main() -> None:
        world = World(per_second=500)
        task = asyncio.create_task(world.polling.run())
        world.store.waiting.wait(KEY, [("ConfigMap", "team", "rows"), ("PersistentVolumeClaim", "team", "data")])
        await world.until(lambda: world.kube.looks)
        assert (world.kube.looks, world.changed) == (["rows"], [])
        world.kube.versions["rows"] = "1"
        await world.until(lambda: world.changed)
        looks = len(world.kube.looks)
        await world.until(lambda: len(world.kube.looks) > looks)
        assert world.changed == [KEY], "it is not told again"
        world.kube.away = True
        await world.until(lambda: len(world.kube.looks) > looks + 1)
        world.kube.away = False
        world.kube.versions["rows"] = "2"
        await world.until(lambda: len(world.changed) == 2)
        world.store.waiting.wait(KEY, [])
        await world.until(lambda: not world.polling._since)
        task.cancel()

    asyncio.run(main())


def test_many_that_are_waited_for_are_looked_at_in_turn_at_one_pace_for_all() -> None:
    async def main() -> None:
        world = World(per_second=50)
        for number in range(40):
            world.store.waiting.wait((*KEY[:2], str(number)), [("ConfigMap", "team", f"rows-{number}")])
        task = asyncio.create_task(world.polling.run())
        began = asyncio.get_running_loop().time()
        await world.until(lambda: len(world.kube.looks) == 40)
        assert asyncio.get_running_loop().time() - began >= 40 / 50
        assert sorted(world.kube.looks) == sorted(f"rows-{number}" for number in range(40)), "none twice, none left out"
        task.cancel()

    asyncio.run(main())
