"""policy/memory.py: what follows when a GPU's memory is too small."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from shown import failed, reason, running

from trl_operator.api.stored import read_status
from trl_operator.plan.view import View
from trl_operator.policy.memory import attempt_file
from trl_operator.status.decision import Decision
from trl_operator.status.events import events
from trl_operator.status.lifecycle import decide

Make = Callable[..., Any]

SHRINK = {"onOutOfMemory": "ShrinkMicroBatch", "maxRestarts": 0}


class Lives:
    """A job whose attempts end for want of memory, one after the other."""

    def __init__(self, make_job: Make, make_child: Make, make_pod: Make, now: datetime, **spec: Any) -> None:
        self._make_child, self._make_pod, self._now = make_child, make_pod, now
        self.job, self.status = running(make_job, make_child, now, **spec)

    def fails(self, why: str = "OutOfGPUMemory", code: int = 11, **fields: Any) -> Decision:
        """The running attempt fails; what is decided is written, and the next attempt runs if there is one."""
        number = self.status["attempt"]
        pod = failed(lambda *_, **kwargs: self._make_pod(0, "Failed", attempt=number, **kwargs), code, why, **fields)
        decision = decide(self.job, self.status, View(self._make_child(number, "Failed"), pods=(pod,)), self._now)
        if "completionTime" not in decision.status:
            self._now += timedelta(seconds=decision.requeue or 0)
            self.status = decide(self.job, decision.status, View(), self._now).status
            self.status = decide(self.job, self.status, View(self._make_child(number + 1)), self._now).status
        return decision


@pytest.fixture
def lives(make_job: Make, make_child: Make, make_pod: Make, now: datetime) -> Make:
    return lambda **spec: Lives(make_job, make_child, make_pod, now, **spec)


def test_each_attempt_has_half_the_micro_batch_at_no_cost_until_it_is_one_row(lives: Make) -> None:
    job = lives(runPolicy=SHRINK, training={"perDeviceBatchSize": 4, "gradientAccumulationSteps": 3})
    assert attempt_file(read_status(job.status)).to_wire() == {"attempt": 0}
    before = job.status
    first = job.fails(activity="training", message="CUDA out of memory. Tried to allocate 2.00 GiB")
    assert first.status["adaptations"] == [
        {"attempt": 1, "reason": "OutOfGPUMemory", "perDeviceBatchSize": 2, "gradientAccumulationSteps": 6}
    ]
    assert (first.status["attempt"], first.status["retry"]["counted"]) == (1, 0)
    assert reason(first) == ("False", "OutOfGPUMemory")
    told = {event.reason: event.message for event in events(before, first.status)}
    assert told["MicroBatchShrunk"] == "attempt 1 trains with perDeviceBatchSize 2 and gradientAccumulationSteps 6"
    assert attempt_file(read_status(job.status)).to_wire() == {"attempt": 1, "perDeviceBatchSize": 2}
    # A trainer of version 0.1 does not say what it was at.
    second = job.fails()
    assert second.status["adaptations"][1:] == [
        {"attempt": 2, "reason": "OutOfGPUMemory", "perDeviceBatchSize": 1, "gradientAccumulationSteps": 12}
    ]
    last = job.fails(activity="training")
    assert (last.status["phase"], last.status["failure"]["reason"]) == ("Failed", "OutOfGPUMemory")
    assert last.status["failure"]["hint"].startswith("One row is too much, perDeviceBatchSize is 1: lower training.max")
    assert last.status["adaptations"] == second.status["adaptations"]


@pytest.mark.parametrize("policy", ["Fail", "ShrinkMicroBatch"])
def test_activations_that_were_kept_by_an_estimate_are_recomputed_first(policy: str, lives: Make) -> None:
    training = {"perDeviceBatchSize": 2, "gradientAccumulationSteps": 3}
    job = lives(runPolicy={"onOutOfMemory": policy, "maxRestarts": 0}, training=training)
    job.status = job.status | {"effective": job.status["effective"] | {"gradientCheckpointing": False}}
    before = job.status
    first = job.fails(activity="training")
    same = {"perDeviceBatchSize": 2, "gradientAccumulationSteps": 3, "gradientCheckpointing": True}
    assert first.status["adaptations"] == [{"attempt": 1, "reason": "OutOfGPUMemory", **same}]
    told = {event.reason: event.message for event in events(before, first.status)}
    assert told["ActivationsRecomputed"] == "attempt 1 recomputes activations"
    # By which the trainer knows that an attempt ran out of memory.
    assert attempt_file(read_status(job.status)).to_wire() == {"attempt": 1, "perDeviceBatchSize": 2}
    second = job.fails(activity="training")
    if policy == "Fail":
        assert second.status["phase"] == "Failed"
    else:
        assert second.status["adaptations"][1]["perDeviceBatchSize"] == 1


@pytest.mark.parametrize(
    ("told", "training", "activity"),
    [
        (True, {}, "training"),
        (None, {}, "training"),
        (False, {"gradientCheckpointing": False}, "training"),
        (False, {}, "evaluating"),
    ],
)
def test_recomputing_that_is_on_given_or_of_no_use_is_not_tried(
    told: bool | None, training: dict[str, Any], activity: str, lives: Make
) -> None:
    job = lives(training=training)
    job.status = job.status | {"effective": job.status["effective"] | {"gradientCheckpointing": told}}
    assert job.fails(activity=activity).status["phase"] == "Failed"


def test_another_failure_leaves_the_micro_batch_as_it_was_made(lives: Make) -> None:
    job = lives(runPolicy=SHRINK | {"maxRestarts": 1}, training={"perDeviceBatchSize": 8})
    job.fails(activity="training")
    lost = job.fails("CommunicationTimeout", 137)
    assert len(lost.status["adaptations"]) == 1
    assert lost.status["retry"]["counted"] == 1
    assert attempt_file(read_status(job.status)).to_wire() == {"attempt": 2, "perDeviceBatchSize": 4}
    # What restarts are left counts for others only.
    assert len(job.fails(activity="training").status["adaptations"]) == 2


@pytest.mark.parametrize(
    ("policy", "size", "activity", "hint"),
    [
        ("Fail", 4, "training", "Halve training.perDeviceBatchSize and double .* as runPolicy.onOutOfMemory Shrink"),
        ("Fail", 3, "training", "perDeviceBatchSize 3 cannot be halved: choose a smaller one"),
        ("ShrinkMicroBatch", 4, "evaluating", "Lower evaluation.perDeviceBatchSize"),
        ("ShrinkMicroBatch", 4, "loading the model", "Use more processes, which share the model"),
    ],
)
def test_what_a_smaller_micro_batch_would_not_mend_or_nobody_has_asked_for_fails_with_a_hint(
    policy: str, size: int, activity: str, hint: str, lives: Make
) -> None:
    job = lives(runPolicy={"onOutOfMemory": policy}, training={"perDeviceBatchSize": size})
    end = job.fails(activity=activity).status
    assert (end["phase"], end["failure"]["reason"]) == ("Failed", "OutOfGPUMemory")
    assert "adaptations" not in end
    assert re.match(hint, end["failure"]["hint"])


def test_a_micro_batch_that_has_become_odd_is_not_halved(lives: Make) -> None:
    job = lives(runPolicy=SHRINK, training={"perDeviceBatchSize": 6})
    assert job.fails().status["adaptations"][0]["perDeviceBatchSize"] == 3
    end = job.fails().status
    assert end["phase"] == "Failed"
    assert end["failure"]["hint"].startswith("perDeviceBatchSize 3 cannot be halved")


def test_a_pods_own_limit_is_named(lives: Make) -> None:
    job = lives(resources={"limits": {"memory": "4Gi"}})
    end = job.fails("OutOfHostMemory", 137, message="rank 0 was killed by the kernel").status
    assert end["failure"]["hint"].startswith("resources.limits.memory is 4Gi. Do what the message says")
    assert lives().fails("OutOfHostMemory", 137).status["failure"]["hint"].startswith("resources.limits.memory is not")


def test_a_grpo_hint_names_what_the_kind_has(lives: Make) -> None:
    job = lives(kind="GRPOJob", training={"perDeviceBatchSize": 1})
    assert "lower grpo.generation.maxCompletionLength" in job.fails().status["failure"]["hint"]
