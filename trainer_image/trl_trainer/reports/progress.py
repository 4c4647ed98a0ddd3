"""Reports of rank 0: to the operator, to metrics.jsonl, and never at the expense of training.

The training thread leaves the newest state in a one-slot mailbox; a daemon thread sends it, with back-off. The end
result does not depend on it: the termination message carries the last state as well.
"""

import http.client
import json
import math
import os
import ssl
import statistics
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_contract.report import Activity, Artifact, Metric, Progress, ProgressReport, RewardReport, TrainerStatus
from trl_trainer.files import write_whole
from trl_trainer.launch.records import BEGAN, now
from trl_trainer.reports.signs import Signs

INTERVAL_SECONDS = 5.0
"""Least time between two reports."""
MAX_BACKOFF_SECONDS = 60.0
FAILURES_UNTIL_TOLD = 3
"""The receiver may get to know of a pod after its first report, and is replaced now and then."""


def metrics_of(values: Mapping[str, Any], limit: int = 64) -> list[Metric]:
    """Return the finite numbers of a log entry, by TRL's names, as decimal strings."""
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
    return [Metric(name=name[:64], value=f"{value:.6g}") for name, value in numbers.items()][:limit]


class Sender:
    """Posts the newest report and forgets older ones; failures are retried with back-off and never raised.

    It asks the receiver itself: a proxy of the job's env is for what lies outside the cluster.
    """

    def __init__(self, environment: Mapping[str, str], interval: float = INTERVAL_SECONDS) -> None:
        self._url = environment.get("KUBEFLOW_TRAINER_SERVER_URL", "")
        self._token_path = environment.get("KUBEFLOW_TRAINER_SERVER_TOKEN", "")
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self._url.startswith("https:"):
            ca = environment.get("KUBEFLOW_TRAINER_SERVER_CA_CERT")
            try:
                handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca)))
            except OSError as error:
                print(f"progress: nothing is reported, {ca} cannot be read: {error}", flush=True)
                self._url = ""
        self._opener = urllib.request.build_opener(*handlers)
        self._interval = interval
        self._failures = 0
        """In a row."""
        self._slot: ProgressReport | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        if self._url:
            self._thread.start()

    def put(self, report: ProgressReport) -> None:
        """Leave `report` to be sent instead of the one that waits; returns at once."""
        with self._changed:
            self._slot = report
            self._changed.notify()

    def close(self, timeout: float = 10.0) -> None:
        """Send what waits, for at most `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        backoff = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._slot is not None or self._closing)
                report, self._slot = self._slot, None
                last = self._closing
            if report is None:
                return
            sent = self._post(report)
            if last:
                return
            backoff = 0.0 if sent else min(MAX_BACKOFF_SECONDS, max(1.0, 2 * backoff))
            with self._changed:
                if not sent and self._slot is None:
                    self._slot = report
                self._changed.wait_for(lambda: self._closing, timeout=self._interval if sent else backoff)

    def _post(self, report: ProgressReport) -> bool:
        body = json.dumps(report.to_wire()).encode()
        try:
            headers = {"Content-Type": "application/json"}
            if self._token_path:
                headers["Authorization"] = f"Bearer {Path(self._token_path).read_text().strip()}"
            request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
            with self._opener.open(request, timeout=5):
                self._failures = 0
                return True
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._failures += 1
            if self._failures == FAILURES_UNTIL_TOLD:
                print(f"progress: reports do not arrive, training goes on: {error}", flush=True)
            return False


class Reporter(TrainerCallback):
    """Rank 0's progress: what it is doing, how far it is, and what it measured. Any thread may update it."""

    def __init__(
        self,
        attempt: int,
        metrics_file: Path,
        sender: Sender,
        rewards: Callable[[], list[RewardReport]] = list,
        gpus: int = 0,
        *,
        warns: bool = True,
    ) -> None:
        self._rewards = rewards
        self._warns = warns
        self._began = float(os.environ.get(BEGAN, time.time()))
        self.trained = 0.0
        """Seconds of all steps that the model has taken."""
        self.state = Progress(attempt=attempt, activity="loading", gpus=gpus, last_update_time=now())
        self._metrics_file = metrics_file
        self._sender = sender
        self._clock = StepClock()
        self._done = False
        self._full = False
        self._tokens = TokenRate()
        self._signs = Signs()
        self._changing = threading.Lock()
        self._publish()

    def update(self, **changes: Any) -> None:
        """Change fields of the state and report it."""
        if "activity" in changes:
            changes = {"activity_percentage": None, **changes}
        with self._changing:
            elapsed = max(0, round(time.time() - self._began))
            self.state = self.state.model_copy(
                update={**changes, "elapsed_seconds": elapsed, "last_update_time": now()}
            )
            self._publish()

    def activity(self, activity: Activity) -> None:
        self.update(activity=activity)

    def warn(self, text: str) -> None:
        """Report `text` before what was worth a look earlier, and print it."""
        print(text, flush=True)
        self.update(warnings=[text[:300], *self.state.warnings][:8])

    def preparing(self, doing: str, done: int, total: int | None = None) -> None:
        """Report that `done` of `total` rows are prepared."""
        if total:
            self.update(activity="tokenizing", activity_percentage=100 * done // total)
        else:
            self.update(activity="loading")

    def close(self, *, done: bool = False, artifacts: Sequence[Artifact] = ()) -> None:
        """Send the last report; only a finished job is at 100 %, and has artifacts."""
        if done:
            self._done = True
            self.update(artifacts=list(artifacts))
        self._sender.close()

    def _publish(self) -> None:
        state = self.state
        percentage = 99 * state.step // state.total_steps if state.total_steps else 0
        status = TrainerStatus(
            progress_percentage=100 if self._done else min(percentage, 99),
            estimated_remaining_seconds=state.eta_seconds,
            metrics=state.metrics,
            last_updated_time=state.last_update_time,
        )
        self._sender.put(ProgressReport(trainer_status=status, trl=state))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        with self._never_failing():
            keep_metrics_until(self._metrics_file, state.global_step)
        resumed = state.global_step or None
        self._signs.begin(state.global_step)
        self.update(
            activity="training",
            step=state.global_step,
            total_steps=state.max_steps,
            # From now on, what was lost with the attempt before does not count.
            training_seconds=round(self.trained),
            trainable_parameters=trainable,
            resumed_from_step=resumed,
        )

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._clock.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trained += self._clock.end()
        self.update(
            activity="training",
            step=state.global_step,
            training_seconds=round(self.trained),
            epoch=state.epoch,
            eta_seconds=self._clock.remaining(state.max_steps - state.global_step),
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        entry = {"step": state.global_step, "time": now(), **logs}
        with self._never_failing(), self._metrics_file.open("a") as file:
            file.write(json.dumps(entry, default=str) + "\n")
        if "loss" in logs:
            rate = self._tokens.update(logs.get("num_tokens"), time.monotonic())
            self.update(
                metrics=metrics_of(logs),
                tokens_per_second=rate or self.state.tokens_per_second,
                rewards=self._rewards(),
            )
            if self._warns and (found := self._signs.look(state.global_step, state.max_steps, logs)):
                for warning in found:
                    print(f"{warning.reason}: {warning.message}. {warning.hint}", flush=True)
                self.update(training_warnings=[*self.state.training_warnings, *found])

    @contextmanager
    def _never_failing(self) -> Iterator[None]:
        """Say once that metrics.jsonl cannot be written; training goes on without it."""
        try:
            yield
        except OSError as error:
            if not self._full:
                print(f"progress: {self._metrics_file} cannot be written: {error}", flush=True)
            self._full = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.state.activity != "evaluating":
            self.activity("evaluating")


class StepClock:
    """Predicts the time to the end from the median of this attempt's last steps."""

    def __init__(self) -> None:
        self._durations: deque[float] = deque(maxlen=20)
        self._began: float | None = None
        self._first = True

    def begin(self) -> None:
        self._began = time.monotonic()

    def end(self) -> float:
        """Return the seconds since the step began."""
        if self._began is None:
            return 0.0
        took = time.monotonic() - self._began
        if not self._first:
            self._durations.append(took)
        # The first step compiles and warms up.
        self._first = False
        return took

    def remaining(self, steps: int) -> int | None:
        """Return the seconds for `steps` more steps, or None while no step has been timed."""
        if not self._durations:
            return None
        return round(statistics.median(self._durations) * max(0, steps))


class TokenRate:
    """Tokens per second between two log entries; a count that falls (TRL restarts it on resume) begins anew."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def update(self, count: float | None, when: float) -> float | None:
        """Return the rate since the call before, or None if there is none."""
        before, self._last = self._last, None if count is None else (count, when)
        if count is None or before is None or count < before[0] or when <= before[1]:
            return None
        return round((count - before[0]) / (when - before[1]), 1)


def keep_metrics_until(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`: the attempt that wrote them did not get to publish them."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines(keepends=True) if _step(line) <= step]
    write_whole(path, "".join(lines))


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        # A line that a crash cut in the middle.
        return math.inf
