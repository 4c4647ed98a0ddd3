"""The HTTPS receiver of progress reports, wire-compatible with Kubeflow Trainer's TrainJob status protocol."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from trl_contract.report import Progress, ProgressReport
from trl_operator.api.job import audience
from trl_operator.api.kinds import BY_PLURAL
from trl_operator.cache import Cache
from trl_operator.constants import API_VERSION, GROUP, MANAGER_PROGRESS, VERSION
from trl_operator.errors import ApiError
from trl_operator.kube import JOBS, TOKEN_REVIEWS, Kube
from trl_operator.metrics import Metrics
from trl_operator.plan.observation import Key, Pod, current_attempt
from trl_operator.status.progress import DONE, from_stock, has_valid_times, is_newer, not_later_than, progress_fields

logger = logging.getLogger(__name__)

MAX_BODY = 64 * 1024
REVIEW_SECONDS = 60.0
"""A token that passed is not asked about again for so long."""
MAX_REVIEWS = 10_000
RETRY_SECONDS = 1.0
"""A write that failed is repeated after so long."""
POD_UID = "authentication.kubernetes.io/pod-uid"


@dataclass
class Pending:
    """The newest report of a job that is not in its status yet."""

    uid: str
    progress: Progress
    percentage: int | None
    retry_at: float = 0.0


class Receiver:
    """Takes reports from pods and writes the newest of each job into its status, at most one per job and interval."""

    def __init__(
        self,
        kube: Kube,
        cache: Cache,
        metrics: Metrics,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._metrics = metrics
        self._interval = interval
        self._clock = clock
        self._reviews: dict[tuple[str, str], tuple[float, str]] = {}
        self._pending: dict[Key, Pending] = {}
        self._written: dict[Key, float] = {}
        self._wake = asyncio.Event()

    def application(self) -> web.Application:
        """Return the web application with its one route."""
        app = web.Application(client_max_size=MAX_BODY)
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/{{plural}}/{{name}}/status"
        app.router.add_post(path, self.post)
        return app

    async def post(self, request: web.Request) -> web.Response:
        """Answer 200 with what was made of the report; 401, 403, 404, 400 and 413 say why it was refused."""
        place = request.match_info
        info = BY_PLURAL.get(place["plural"])
        key = (info.kind if info else "", place["namespace"], place["name"])
        obj = self._cache.jobs.get(key)
        if info is None or obj is None:
            raise self._refused(web.HTTPNotFound, "there is no such job")
        pod = await self._sender(request, audience(info, key[1], key[2], obj["metadata"]["uid"]), obj)
        try:
            report = ProgressReport.model_validate_json(await request.read())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "body"
            raise self._refused(web.HTTPBadRequest, f"{field}: {first['msg']}") from error
        accepted, message = self._take(key, obj, pod, report)
        self._metrics.count("trl_operator_reports_total", result="accepted" if accepted else "dropped")
        return web.json_response({"accepted": accepted, "message": message})

    def _refused(self, answer: type[web.HTTPException], message: str) -> web.HTTPException:
        self._metrics.count("trl_operator_reports_total", result=f"refused-{answer.status_code}")
        return answer(text=message)

    async def _sender(self, request: web.Request, audience: str, obj: dict[str, Any]) -> Pod:
        """Return the pod that sent the request: it must belong to the job's current attempt."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise self._refused(web.HTTPUnauthorized, "send the projected token: Authorization: Bearer TOKEN")
        uid = await self._pod_uid(token, audience)
        if uid is None:
            raise self._refused(web.HTTPUnauthorized, "the token is not valid for this job")
        pod = self._cache.pod(uid)
        attempt = current_attempt(obj)
        if pod is None or attempt is None or not attempt.has(pod):
            raise self._refused(web.HTTPForbidden, "the token's pod does not belong to the job's current attempt")
        return pod

    async def _pod_uid(self, token: str, audience: str) -> str | None:
        """Return the uid of the pod that the token is bound to, as the API server says."""
        key = (sha256(token.encode()).hexdigest(), audience)
        reviewed = self._reviews.get(key)
        if reviewed and self._clock() < reviewed[0]:
            return reviewed[1]
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}
        try:
            review = await self._kube.create(TOKEN_REVIEWS, body | {"spec": {"token": token, "audiences": [audience]}})
        except ApiError as error:
            logger.warning("token review: %s", error)
            raise self._refused(web.HTTPServiceUnavailable, "the token cannot be checked now: try again") from error
        status = review["status"]
        uids = status.get("user", {}).get("extra", {}).get(POD_UID, [])
        if not status.get("authenticated") or audience not in status.get("audiences", ()) or len(uids) != 1:
            return None
        if len(self._reviews) >= MAX_REVIEWS:
            self._reviews.clear()
        self._reviews[key] = (self._clock() + REVIEW_SECONDS, uids[0])
        return str(uids[0])

    def _take(self, key: Key, obj: dict[str, Any], pod: Pod, report: ProgressReport) -> tuple[bool, str]:
        """Keep the report for writing if it says something new; return whether, and why not."""
        progress = not_later_than(datetime.now(UTC), report.trl or from_stock(report, pod.attempt))
        if progress.attempt != pod.attempt:
            return False, f"this is attempt {pod.attempt}, the report is of attempt {progress.attempt}"
        if not has_valid_times(progress):
            return False, "a time is not RFC 3339 like 2026-11-21T06:00:00.123456Z"
        if progress.step > progress.total_steps > 0:
            return False, f"step {progress.step} is beyond the last one, {progress.total_steps}"
        if "completionTime" in obj.get("status", {}):
            return False, "the job has ended"
        pending = self._pending.get(key)
        known = {"progress": _known(pending.progress)} if pending and pending.uid == pod.job_uid else {}
        if not is_newer(progress, obj.get("status", {})) or not is_newer(progress, known):
            return False, "not newer than what is known"
        # All steps done are 99 %: what comes after them may take long. At 100 % our trainer has nothing left to do.
        percentage = report.trainer_status.progress_percentage
        if report.trl and percentage != DONE:
            percentage = None
        self._pending[key] = Pending(pod.job_uid, progress, percentage)
        self._wake.set()
        return True, f"step {progress.step} of attempt {progress.attempt}"

    async def write(self) -> None:
        """Write pending reports for ever: each job's at most once per interval, an attempt's first at 100 % at once."""
        while True:
            for key in [key for key in self._pending if self._due_in(key) <= 0]:
                pending = self._pending.pop(key)
                try:
                    written = await self._save(key, pending)
                except ApiError as error:
                    logger.log(
                        logging.DEBUG if error.status == 409 else logging.WARNING, "progress of %s: %s", key, error
                    )
                    if error.final:
                        self._metrics.count("trl_operator_reports_total", result="refused-by-api-server")
                    else:
                        self._pending.setdefault(key, pending).retry_at = self._clock() + RETRY_SECONDS
                else:
                    if written:
                        self._written[key] = self._clock()
            # Only writes of the last interval make others wait; what is older would pile up, job by job.
            self._written = {key: at for key, at in self._written.items() if at + self._interval > self._clock()}
            self._wake.clear()
            delay = min((self._due_in(key) for key in self._pending), default=None)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), delay)

    def _due_in(self, key: Key) -> float:
        pending = self._pending[key]
        done = pending.percentage == DONE
        known = self._cache.jobs.get(key, {}).get("status", {}).get("progress", {})
        # Whoever is done again and again waits like everybody else.
        again = (known.get("attempt"), known.get("percentage")) == (pending.progress.attempt, DONE)
        interval = 0.0 if done and not again else self._interval
        return max(self._written.get(key, -interval) + interval, pending.retry_at) - self._clock()

    async def _save(self, key: Key, pending: Pending) -> bool:
        """Write a report; return whether its job is still there and goes on.

        The write names the version that was read: of a status, the API server does not compare uids, and a job of the
        same name may have taken the place of the one that is meant.
        """
        obj = await self._kube.get(JOBS[key[0]], key[1], key[2])
        if obj is None or obj["metadata"]["uid"] != pending.uid or "completionTime" in obj.get("status", {}):
            return False
        if not is_newer(pending.progress, obj.get("status", {})):
            return True
        status = progress_fields(pending.progress, pending.percentage, obj.get("status", {}))
        metadata = {name: obj["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion")}
        body = {"apiVersion": API_VERSION, "kind": key[0], "metadata": metadata, "status": status}
        self._cache.put_job(await self._kube.apply(JOBS[key[0]], key[1], body, MANAGER_PROGRESS, "status"))
        return True


def _known(progress: Progress) -> dict[str, Any]:
    return {"attempt": progress.attempt, "step": progress.step, "lastUpdateTime": progress.last_update_time}
