"""Many running jobs without anything that runs: what the receiver has to see of them, and the reports of their pods."""

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from trl_operator.api.job import audience
from trl_operator.api.kinds import KINDS
from trl_operator.constants import LABEL_ATTEMPT, LABEL_JOB_KIND, LABEL_JOB_NAME, LABEL_JOB_UID
from trl_operator.kube import JOBS, PODS, Kube, Resource

ACCOUNT_TOKENS = Resource("", "v1", "serviceaccounts/default/token")


@dataclass
class Running:
    """A running job and its pod's token; `sent` are its reports: when they were sent, by their times."""

    name: str
    path: str
    audience: str
    pod_uid: str
    token: str
    source: str
    """Address that its reports come from."""
    sent: dict[str, float] = field(default_factory=dict)
    answers: list[tuple[int, float]] = field(default_factory=list)
    """Status and seconds of every answer."""


async def make(kube: Kube, namespace: str, manifest: Callable[..., Any], count: int, first: int = 0) -> list[Running]:
    """Make running jobs; nothing may be there that would take their PyTorchJobs' absence amiss."""
    limit = asyncio.Semaphore(16)

    async def one(number: int) -> Running:
        async with limit:
            return await _make(kube, namespace, manifest(f"job-{number}", runPolicy={"maxRestarts": 0}), number)

    return list(await asyncio.gather(*(one(number) for number in range(first, first + count))))


async def _make(kube: Kube, namespace: str, body: Any, number: int) -> Running:
    job = await kube.create(JOBS["DPOJob"], body, namespace)
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    child = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": f"{name}-dpo-0", "uid": f"child-{number}"}
    place = {"name": name, "namespace": namespace}
    status = {"attempt": 0, "phase": "Running", "workload": child}
    stored = {"apiVersion": body["apiVersion"], "kind": "DPOJob", "metadata": place, "status": status}
    await kube.apply(JOBS["DPOJob"], namespace, stored, "fleet", "status")
    labels = {LABEL_JOB_UID: uid, LABEL_JOB_NAME: name, LABEL_JOB_KIND: "DPOJob", LABEL_ATTEMPT: "0"}
    owner = {"controller": True, **child}
    metadata = {"name": f"{name}-dpo-0-worker-0", "labels": labels, "ownerReferences": [owner]}
    container = {"name": "pytorch", "image": "none"}
    spec = {"containers": [container], "nodeSelector": {"none": "such"}}
    pod = await kube.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, namespace)
    bound = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": pod["metadata"]["uid"]}
    whom = audience(KINDS["DPOJob"], namespace, name, uid)
    asked = {"spec": {"audiences": [whom], "boundObjectRef": bound, "expirationSeconds": 3600}}
    answer = await kube.create(ACCOUNT_TOKENS, {"apiVersion": "authentication.k8s.io/v1", **asked}, namespace)
    path = f"/apis/{body['apiVersion']}/namespaces/{namespace}/dpojobs/{name}/status"
    source = f"127.1.{number // 250}.{number % 250 + 1}"
    return Running(name, path, whom, pod["metadata"]["uid"], answer["status"]["token"], source)


async def report(job: Running, port: int, tls: ssl.SSLContext) -> None:
    """Send a report by a connection of its own, as trainers do."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    ours = {"step": len(job.sent) + 1, "totalSteps": 10_000, "activity": "training", "lastUpdateTime": now}
    body = json.dumps({"trainerStatus": {"lastUpdatedTime": now}, "trl": ours})
    job.sent[now] = began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, local_addr=(job.source, 0))
    writer.write(post(job.path, job.token, body, "close"))
    head = await reader.readline()
    job.answers.append((int(head.split()[1]), time.monotonic() - began))
    await reader.read()
    writer.close()


def post(path: str, token: str, body: str, connection: str) -> bytes:
    """A request as it goes over the wire."""
    head = [f"POST {path} HTTP/1.1", "Host: receiver", f"Authorization: Bearer {token}", f"Connection: {connection}"]
    head += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", body]
    return "\r\n".join(head).encode()


async def report_every(
    seconds: float, for_seconds: float, jobs: list[Running], one: Callable[[Any], Awaitable[None]]
) -> None:
    """Have each job report so often, the jobs spread evenly over the interval; a late report delays no later one."""
    began = time.monotonic()
    reports = set()
    for round_ in range(int(for_seconds / seconds)):
        for number, job in enumerate(jobs):
            at = began + (round_ + number / len(jobs)) * seconds
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            reports.add(asyncio.create_task(one(job)))
    await asyncio.gather(*reports)


def p99(found: Iterable[float]) -> float:
    """The 99th percentile; the greatest of fewer than a hundred."""
    ordered = sorted(found)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
