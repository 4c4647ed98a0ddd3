"""The API client against the real API server."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from devcluster.controlplane import ControlPlane
from devcluster.faultproxy import FaultProxy, Request, Verdict
from trl_operator import kube as module
from trl_operator.errors import ApiError
from trl_operator.kube import CONFIG_MAPS, JOBS, Kube

Use = Callable[[Callable[[Kube], Awaitable[None]]], None]


@pytest.fixture
def use(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Run a coroutine function with a connection as the administrator."""
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))

    def run(test: Callable[[Kube], Awaitable[None]]) -> None:
        async def main() -> None:
            async with await Kube.connect() as kube:
                await test(kube)

        asyncio.run(main())

    return run


def config_map(name: str, **data: str) -> dict[str, Any]:
    labels = {"trl-operator.io/job-name": "tune"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": data}


def test_what_is_not_there_is_none_and_what_is_there_is_refused_again(use: Use, namespace: str) -> None:
    async def test(kube: Kube) -> None:
        assert await kube.get(CONFIG_MAPS, namespace, "a") is None
        made = await kube.create(CONFIG_MAPS, config_map("a"), namespace)
        found = await kube.get(CONFIG_MAPS, namespace, "a")
        assert found is not None
        assert found["metadata"]["uid"] == made["metadata"]["uid"]
        with pytest.raises(ApiError, match="already exists") as caught:
            await kube.create(CONFIG_MAPS, config_map("a"), namespace)
        assert caught.value.status == 409

    use(test)


def test_only_the_very_object_that_is_meant_is_deleted(use: Use, namespace: str) -> None:
    async def test(kube: Kube) -> None:
        made = await kube.create(CONFIG_MAPS, config_map("a"), namespace)
        assert not await kube.delete(CONFIG_MAPS, namespace, "a", "another-uid")
        assert await kube.get(CONFIG_MAPS, namespace, "a") is not None
        with pytest.raises(ApiError) as caught:
            await kube.delete(CONFIG_MAPS, namespace, "a", made["metadata"]["uid"], version="1")
        assert caught.value.status == 409, "it has changed since"
        assert await kube.get(CONFIG_MAPS, namespace, "a") is not None
        for was_there in (True, False):
            assert await kube.delete(CONFIG_MAPS, namespace, "a", made["metadata"]["uid"]) is was_there
        assert await kube.get(CONFIG_MAPS, namespace, "a") is None

    use(test)


def test_a_list_comes_page_by_page_and_whole(use: Use, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 2)

    async def test(kube: Kube) -> None:
        for name in "abcde":
            await kube.create(CONFIG_MAPS, config_map(name), namespace)
        items, version = await kube.list(CONFIG_MAPS, namespace, "trl-operator.io/job-name=tune")
        assert [item["metadata"]["name"] for item in items] == list("abcde")
        assert all(item["kind"] == "ConfigMap" for item in items)
        assert version >= int(items[-1]["metadata"]["resourceVersion"])
        [chosen], _ = await kube.list(CONFIG_MAPS, namespace, fields="metadata.name=c")
        assert chosen["metadata"]["name"] == "c"

    use(test)


def test_two_managers_of_a_status_leave_each_other_alone_and_a_stale_version_is_refused(
    use: Use, control_plane: ControlPlane, namespace: str, dpo: Callable[..., Any]
) -> None:
    job = dpo()
    job["metadata"]["namespace"] = namespace
    control_plane.apply(job)

    async def test(kube: Kube) -> None:
        resource = JOBS["DPOJob"]
        stored = await kube.get(resource, namespace, "tune")
        assert stored is not None

        async def write(status: dict[str, Any], manager: str, **metadata: str) -> dict[str, Any]:
            place = {"name": "tune", "namespace": namespace, **metadata}
            body = {"apiVersion": job["apiVersion"], "kind": "DPOJob", "metadata": place, "status": status}
            return await kube.apply(resource, namespace, body, manager, "status")

        progress = {"attempt": 0, "activity": "training", "display": "1/2", "step": 1, "totalSteps": 2}
        await write({"progress": {**progress, "lastUpdateTime": "2026-11-21T06:00:00Z"}}, "one")
        after = await write({"restarts": 3, "effective": {"batchSize": 8}}, "two")
        assert after["status"]["progress"]["step"] == 1
        after = await write({"effective": {"totalSteps": 2}}, "one")
        assert after["status"]["effective"] == {"batchSize": 8, "totalSteps": 2}
        assert "progress" not in after["status"]
        with pytest.raises(ApiError) as caught:
            await write({"restarts": 4}, "two", resourceVersion=stored["metadata"]["resourceVersion"])
        assert caught.value.status == 409
        # Why every status write of ours names the version that it was decided on:
        assert (await write({"restarts": 4}, "two", uid="another-uid"))["status"]["restarts"] == 4

    use(test)


def test_every_failure_is_an_api_error_that_says_how_long_to_wait(
    use: Use, control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_SECONDS", 0.5)
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.5)
    verdict: list[Verdict] = []

    def before(_: Request) -> Verdict:
        if not verdict:
            time.sleep(1)
            return "pass"
        return verdict[0]

    with FaultProxy(control_plane.url, control_plane.ca) as proxy:

        async def test(kube: Kube) -> None:
            kube._client.configuration.host = proxy.url
            proxy.before = before
            for given, status in ((503, 503), (429, 429), ("reset", 0)):
                verdict[:] = [given]  # type: ignore[list-item]
                for call in (
                    kube.get(CONFIG_MAPS, "default", "x"),
                    kube.create(CONFIG_MAPS, config_map("x"), "default"),
                    kube.delete(CONFIG_MAPS, "default", "x", "uid"),
                ):
                    with pytest.raises(ApiError) as caught:
                        await call
                    assert caught.value.status == status
                    assert caught.value.retry_after == (3 if given == 429 else 0)
            verdict[:] = ["pass"]
            proxy.after = lambda _: "truncate"
            with pytest.raises(ApiError, match="an answer that ends too early") as caught:
                await kube.list(CONFIG_MAPS, "default")
            assert caught.value.status == 0
            proxy.after = lambda _: "pass"
            verdict.clear()
            with pytest.raises(ApiError, match="TimeoutError"):
                await kube.create(CONFIG_MAPS, config_map("x"), "default")

        use(test)
