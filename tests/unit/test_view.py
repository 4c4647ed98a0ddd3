"""Whether an attempt that has not succeeded goes on, is to be ended, ends, or is over: its workload x its pods."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from trl_operator.plan.observation import format_time
from trl_operator.plan.view import View

Make = Callable[..., Any]

WORKLOADS = ("active", "active, deleted", "says failed", "says succeeded", "gone")
TABLE = {
    "none yet": ("goes on", "is over", "is over", "is over", "is over"),
    "all run": ("goes on", "ends", "ends", "goes on", "ends"),
    "one failed, one runs": ("ends", "ends", "ends", "goes on", "ends"),
    "all failed": ("goes on", "is over", "is over", "is over", "is over"),
    "one succeeded, one runs": ("goes on", "ends", "ends", "goes on", "ends"),
    "one succeeded, one failed": ("goes on", "is over", "is over", "is over", "is over"),
    "one gone, one runs": ("to be ended", "ends", "ends", "ends", "ends"),
    "one gone, one failed": ("ends", "is over", "is over", "is over", "is over"),
    "one gone that succeeded, one runs": ("goes on", "ends", "ends", "goes on", "ends"),
    "one gone that failed, one made anew": ("to be ended", "ends", "ends", "ends", "ends"),
    "one failed, one on a lost node": ("is over", "is over", "is over", "goes on", "is over"),
    "one runs, one on a lost node": ("goes on", "ends", "ends", "goes on", "ends"),
    "all on lost nodes": ("goes on", "is over", "is over", "goes on", "is over"),
}
"""What an attempt is, by what its pods are, under each of these workloads."""
SEEN = {
    "none yet": "to be ended",
    "all run": "to be ended",
    "one failed, one runs": "ends",
    "all failed": "ends",
    "one gone, one failed": "ends",
    "one failed, one on a lost node": "is over",
    "all on lost nodes": "to be ended",
}
"""The same under an active workload, once the attempt was seen to have failed."""


@pytest.fixture
def look(make_child: Make, make_pod: Make, now: datetime) -> Callable[..., str]:
    def pods(text: str) -> tuple[Any, ...]:
        lost = {"deleted_at": format_time(now - timedelta(seconds=61))}
        made = {
            "run": lambda index: make_pod(index),
            "runs": lambda index: make_pod(index),
            "made anew": lambda index: make_pod(index),
            "failed": lambda index: make_pod(index, "Failed", exit_code=1),
            "succeeded": lambda index: make_pod(index, "Succeeded", exit_code=0),
            "gone": lambda index: make_pod(index).vanished(),
            "gone that succeeded": lambda index: make_pod(index, "Succeeded", exit_code=0).vanished(),
            "gone that failed": lambda index: make_pod(index, "Failed", exit_code=1).vanished(),
            "on a lost node": lambda index: make_pod(index, **lost),
            "on lost nodes": lambda index: make_pod(index, **lost),
        }
        if text == "none yet":
            return ()
        who, _, words = text.partition(" ")
        each = [words] * 2 if who == "all" else [words.partition(",")[0], words.partition(", one ")[2]]
        return tuple(made[word](index) for index, word in enumerate(each))

    def course(workload: str, text: str, *, failed: bool = False) -> str:
        child = {
            "active": make_child(0),
            "active, deleted": make_child(0, deleting=True),
            "says failed": make_child(0, "Failed"),
            "says succeeded": make_child(0, "Succeeded"),
            "gone": None,
        }[workload]
        return View(child, pods=pods(text)).course(now, failed=failed)

    return course


@pytest.mark.parametrize("pods", TABLE)
def test_how_far_an_attempt_is_follows_from_its_workload_and_its_pods(look: Make, pods: str) -> None:
    assert tuple(look(workload, pods) for workload in WORKLOADS) == TABLE[pods]


@pytest.mark.parametrize("pods", SEEN)
def test_an_attempt_that_was_seen_to_fail_does_not_go_on(look: Make, pods: str) -> None:
    assert look("active", pods, failed=True) == SEEN[pods]
