"""Load for the control plane: jobs at once, at a rate, waiting, running silently or finished; and the floor client."""

import asyncio
import base64
import json
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

Obj = dict[str, Any]

GROUP, VERSION = "trl-operator.io", "v1alpha1"
CONNECTIONS = 32
"""Requests of a load that are under way at the same time, the floor's too."""
APPLY = {"Content-Type": "application/apply-patch+yaml"}
ROWS = [{"prompt": "Where is it?", "chosen": "I will look at once.", "rejected": "no idea"}] * 4


def job(name: str) -> Obj:
    spec = {
        "model": {"hub": {"repo": "org/base"}},
        "dataset": {"train": {"inline": ROWS}},
        "storage": {"size": "1Gi", "accessModes": ["ReadWriteMany"]},
        "numNodes": 2,
    }
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "DPOJob", "metadata": {"name": name}, "spec": spec}


class Api:
    """The API server of a control plane, as its administrator, in one namespace."""

    def __init__(self, session: aiohttp.ClientSession, namespace: str) -> None:
        self.session = session
        self.namespace = namespace
        self.jobs = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/dpojobs"
        self.workloads = f"/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs"
        self.pods = f"/api/v1/namespaces/{namespace}/pods"

    async def post(self, path: str, body: Obj) -> Obj:
        async with self.session.post(path, json=body) as answer:
            assert answer.status == 201, await answer.text()
            found: Obj = await answer.json()
            return found

    async def apply_status(self, made: Obj, status: Obj) -> None:
        """Server-side apply, as one operator would do it."""
        name = made["metadata"]["name"]
        place = {"name": name, "namespace": self.namespace}
        body = {"apiVersion": made["apiVersion"], "kind": made["kind"], "metadata": place, "status": status}
        path = f"{self.jobs}/{name}/status?fieldManager=trl-operator-status&force=true"
        async with self.session.patch(path, data=json.dumps(body), headers=APPLY) as answer:
            assert answer.status == 200, await answer.text()

    @asynccontextmanager
    async def seen(self, path: str, count: int) -> Any:
        """Inside, objects are watched from now on; yields when each was first seen, and an event at the last one."""
        found: dict[str, float] = {}
        done = asyncio.Event()

        async def follow() -> None:
            query = {"watch": "1", "resourceVersion": "0", "timeoutSeconds": "3600"}
            async with self.session.get(path, params=query, timeout=aiohttp.ClientTimeout(total=None)) as answer:
                rest = b""
                async for chunk in answer.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        event = json.loads(line)
                        if event["type"] == "ADDED":
                            found.setdefault(event["object"]["metadata"]["name"], time.monotonic())
                    if len(found) >= count:
                        done.set()

        task = asyncio.create_task(follow())
        try:
            yield found, done
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def connect(kubeconfig: Path) -> Any:
    """A session with the API server; `Api` takes it."""
    config = json.loads(kubeconfig.read_text())
    user, cluster = config["users"][0]["user"], config["clusters"][0]["cluster"]
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    with tempfile.NamedTemporaryFile("wb", suffix=".pem") as file:
        file.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
        file.flush()
        context.load_cert_chain(file.name)
    connector = aiohttp.TCPConnector(ssl=context, limit=2 * CONNECTIONS)
    async with aiohttp.ClientSession(cluster["server"], connector=connector) as session:
        yield session


async def many(count: int, one: Callable[[int], Awaitable[Any]], rate: float | None = None) -> None:
    """Do `one` for each number: at a rate whatever the answers take, or as fast as CONNECTIONS of them go."""
    if rate is None:
        limit = asyncio.Semaphore(CONNECTIONS)

        async def limited(number: int) -> None:
            async with limit:
                await one(number)

        await asyncio.gather(*(limited(number) for number in range(count)))
        return
    began, tasks = time.monotonic(), []
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)


async def floor(api: Api, count: int, workload: Obj, rate: float | None = None) -> tuple[float, list[float]]:
    """No more than any operator must send: status, PyTorchJob, status. Return the seconds in all, and of each."""
    each: list[float] = []

    async def one(number: int) -> None:
        began = time.monotonic()
        made = await api.post(api.jobs, job(f"f{number}"))
        await api.apply_status(made, {"phase": "Starting", "attempt": 0})
        metadata = {"name": f"f{number}-dpo-0", "labels": workload["metadata"]["labels"]}
        child = await api.post(api.workloads, {**workload, "metadata": metadata})
        each.append(time.monotonic() - began)
        named = {key: child["metadata"][key] for key in ("name", "uid")}
        reference = {"apiVersion": child["apiVersion"], "kind": child["kind"], **named}
        await api.apply_status(made, {"phase": "Starting", "attempt": 0, "workload": reference})

    began = time.monotonic()
    await many(count, one, rate)
    return time.monotonic() - began, each


async def ours(api: Api, count: int, rate: float | None = None) -> tuple[float, list[float]]:
    """Jobs, and the time until the operator has made the PyTorchJob of each: seconds in all and each."""
    sent: dict[str, float] = {}

    async def one(number: int) -> None:
        sent[f"j{number}"] = time.monotonic()
        await api.post(api.jobs, job(f"j{number}"))

    async with api.seen(api.workloads, count) as (found, done):
        began = time.monotonic()
        await many(count, one, rate)
        await asyncio.wait_for(done.wait(), 900)
        total = time.monotonic() - began
    return total, [found[f"{name}-dpo-0"] - at for name, at in sent.items()]


async def run_pods(api: Api) -> int:
    """The pods of every PyTorchJob of the namespace are there and run, without anybody who would make them."""
    async with api.session.get(api.workloads) as answer:
        workloads = (await answer.json())["items"]
    states = [{"name": "pytorch", "image": "x", "imageID": "", "ready": True, "started": True, "restartCount": 0,
               "state": {"running": {"startedAt": "2026-11-26T12:00:00Z"}}}]  # fmt: skip
    pods = [(workload, index) for workload in workloads for index in range(2)]

    async def one(number: int) -> None:
        workload, index = pods[number]
        name = f"{workload['metadata']['name']}-worker-{index}"
        template = workload["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["metadata"]["labels"]
        owner = {
            "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "controller": True,
            "name": workload["metadata"]["name"], "uid": workload["metadata"]["uid"],
        }  # fmt: skip
        labels = template | {"training.kubeflow.org/replica-index": str(index)}
        spec = {"containers": [{"name": "pytorch", "image": "x"}], "nodeSelector": {"none": "such"}}
        metadata = {"name": name, "labels": labels, "ownerReferences": [owner]}
        await api.post(api.pods, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        status = {"status": {"phase": "Running", "containerStatuses": states}}
        headers = {"Content-Type": "application/merge-patch+json"}
        async with api.session.patch(f"{api.pods}/{name}/status", data=json.dumps(status), headers=headers) as answer:
            assert answer.status == 200, await answer.text()

    await many(len(pods), one)
    return len(pods)


async def finished(api: Api, count: int) -> None:
    """Jobs that ended long ago, with a status as full as a long run leaves it."""
    end = {"reason": "Succeeded", "message": "training has finished", "lastTransitionTime": "2026-11-26T12:00:00Z"}
    told = [{"type": kind, "status": str(kind != "Failed"), **end} for kind in ("Succeeded", "Failed", "Finished")]
    metrics = [{"name": f"metric/{number}", "value": "0.123456789"} for number in range(24)]
    progress = {
        "attempt": 0, "activity": "exporting", "display": "1000/1000", "step": 1000, "totalSteps": 1000,
        "lastUpdateTime": "2026-11-26T12:00:00Z", "metrics": metrics, "warnings": ["x" * 500] * 4,
    }  # fmt: skip
    status = {
        "phase": "Succeeded", "attempt": 0, "restarts": 0, "conditions": told, "progress": progress,
        "observedGeneration": 1, "completionTime": "2026-11-26T12:00:00Z",
    }  # fmt: skip

    async def one(number: int) -> None:
        await api.apply_status(await api.post(api.jobs, job(f"e{number}")), status)

    await many(count, one)
