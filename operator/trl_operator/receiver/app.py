"""The one route: who may report, and what is made of a report."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from aiohttp import web
from pydantic import ValidationError

from trl_contract.report import ProgressReport
from trl_operator.api.job import audience
from trl_operator.api.kinds import BY_PLURAL
from trl_operator.constants import GROUP, VERSION
from trl_operator.errors import ApiError
from trl_operator.metrics import ReceiverMetrics
from trl_operator.plan.observation import Key, Pod
from trl_operator.receiver.reviews import Reviews
from trl_operator.receiver.store import ReportingJob, Store
from trl_operator.receiver.tokens import claims
from trl_operator.receiver.turns import Busy
from trl_operator.receiver.writer import Pending, Writer
from trl_operator.status.progress import DONE, from_stock, has_valid_times, is_newer, not_later_than

logger = logging.getLogger(__name__)

MAX_BODY = 64 * 1024
PATH = f"/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/{{plural}}/{{name}}/status"


class Receiver:
    """Takes reports from pods of running jobs and hands the newest of each job to the writer."""

    def __init__(
        self,
        store: Store,
        reviews: Reviews,
        writer: Writer,
        metrics: ReceiverMetrics,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._reviews = reviews
        self._writer = writer
        self._metrics = metrics
        self._now = now

    def application(self) -> web.Application:
        """Return the web application."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post(PATH, self.post)
        return app

    async def post(self, request: web.Request) -> web.Response:
        """Answer 200 with what was made of the report; 401, 403, 400, 413, 429 and 503 say why it was refused.

        Nothing is told to a sender that has not proven who it is, not even whether there is such a job.
        """
        place = request.match_info
        info = BY_PLURAL.get(place["plural"])
        key = (info.kind if info else "", place["namespace"], place["name"])
        job = self._store.jobs.get(key)
        pod = await self._sender(request, audience(info, key[1], key[2], job.uid) if info and job else None)
        if job is None or job.attempt is None or not job.attempt.has(pod):
            raise self._refused(web.HTTPForbidden, "the token's pod does not belong to the job's current attempt")
        try:
            report = ProgressReport.model_validate_json(await request.read())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "body"
            raise self._refused(web.HTTPBadRequest, f"{field}: {first['msg']}") from error
        accepted, message = self._take(key, job, pod, report)
        self._metrics.reports.labels("accepted" if accepted else "dropped").inc()
        return web.json_response({"accepted": accepted, "message": message})

    def _refused(self, answer: type[web.HTTPException], message: str) -> web.HTTPException:
        self._metrics.reports.labels(f"refused-{answer.status_code}").inc()
        return answer(text=message, headers={"Retry-After": "2"} if answer.status_code in (429, 503) else None)

    async def _sender(self, request: web.Request, audience: str | None) -> Pod:
        """Return the pod that has proven to send the request."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise self._refused(web.HTTPUnauthorized, "send the projected token: Authorization: Bearer TOKEN")
        said, uid = claims(token), None
        if audience and said and said.fit(audience, self._now()) and said.pod_uid in self._store.pods:
            try:
                uid = await self._reviews.pod_uid(token, audience, request.remote or "")
            except Busy as error:
                raise self._refused(web.HTTPTooManyRequests, "too many tokens to check: try again") from error
            except ApiError as error:
                logger.warning("token review: %s", error)
                raise self._refused(web.HTTPServiceUnavailable, "the token cannot be checked now: try again") from error
        pod = self._store.pods.get(uid) if uid else None
        if pod is None:
            raise self._refused(web.HTTPUnauthorized, "the token is not valid for this job")
        return pod

    def _take(self, key: Key, job: ReportingJob, pod: Pod, report: ProgressReport) -> tuple[bool, str]:
        """Keep the report for writing if it says something new; return whether, and why not."""
        progress = report.trl or from_stock(report, pod.attempt)
        if progress.attempt != pod.attempt:
            return False, f"this is attempt {pod.attempt}, the report is of attempt {progress.attempt}"
        if not has_valid_times(progress):
            return False, "a time is not RFC 3339 like 2026-11-21T06:00:00.123456Z"
        if progress.step > progress.total_steps > 0:
            return False, f"step {progress.step} is beyond the last one, {progress.total_steps}"
        if job.ended:
            return False, "the job has ended"
        progress = not_later_than(datetime.fromtimestamp(self._now(), UTC), progress)
        pending = self._writer.pending.get(key)
        known = [job.progress, pending.known if pending and pending.uid == pod.job_uid else {}]
        if not all(is_newer(progress, {"progress": said} if said else {}) for said in known):
            return False, "not newer than what is known"
        # All steps done are 99 %: what comes after them may take long. At 100 % our trainer has nothing left to do.
        percentage = report.trainer_status.progress_percentage
        if report.trl and percentage != DONE:
            percentage = None
        self._writer.put(key, Pending(pod.job_uid, progress, percentage))
        return True, f"step {progress.step} of attempt {progress.attempt}"
