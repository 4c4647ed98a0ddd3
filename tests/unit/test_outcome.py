"""The first cause of a failed attempt."""

from collections.abc import Callable
from typing import Any, get_args

import pytest

from trl_contract.report import FailureReason
from trl_operator.plan.outcome import classify
from trl_operator.plan.reasons import REASONS

Make = Callable[..., Any]


def record(reason: str, second: int = 0, **fields: Any) -> dict[str, Any]:
    outcome = "Preempted" if reason == "Preempted" else "Failed"
    time = f"2026-11-21T11:30:{second:02d}.5Z"
    return {"outcome": outcome, "reason": reason, "time": time, **fields}


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        ({"exit_code": 10, "record": record("DataFormatError")}, "DataFormatError"),
        ({"exit_code": 11}, "OutOfGPUMemory"),
        ({"exit_code": 12}, "NonFiniteLoss"),
        ({"exit_code": 13}, "CheckpointCorrupt"),
        ({"exit_code": 14}, "RewardError"),
        ({"exit_code": 143}, "Preempted"),
        ({"exit_code": 1}, "Unknown"),
        ({"exit_code": 137}, "Unknown"),
        ({"exit_code": 137, "exit_reason": "OOMKilled"}, "OutOfHostMemory"),
        ({"exit_code": 1, "record": "{not json"}, "Unknown"),
        ({"exit_code": 1, "record": '{"outcome": "Bored"}'}, "Unknown"),
        ({"exit_code": 12, "record": record("DataFormatError") | {"rank": 2**31}}, "NonFiniteLoss"),
        ({"exit_code": 137, "disruption": "DeletionByTaintManager"}, "NodeLost"),
        ({"exit_code": 255, "exit_reason": "Unknown"}, "NodeLost"),
        ({"exit_code": 137, "exit_reason": "ContainerStatusUnknown"}, "NodeLost"),
        ({"exit_code": 143, "deleted_at": "2026-11-21T11:40:00Z", "record": record("Preempted")}, "ChildDeleted"),
        (
            {
                "exit_code": 143,
                "deleted_at": "2026-11-21T11:40:00Z",
                "record": record("Preempted"),
                "disruption": "EvictionByEvictionAPI",
            },
            "Preempted",
        ),
        ({"exit_code": 137, "disruption": "PreemptionByScheduler"}, "Preempted"),
        ({"exit_code": 137, "disruption": "EvictionByEvictionAPI"}, "Preempted"),
        ({"exit_code": 137, "reason": "Evicted", "message": "over its ephemeral-storage limit"}, "Evicted"),
        (
            {
                "exit_code": 137,
                "reason": "Evicted",
                "message": "node low on memory",
                "disruption": "TerminationByKubelet",
            },
            "Preempted",
        ),
    ],
)
def test_one_pods_end_has_one_reason(make_pod: Make, pod: dict[str, Any], reason: str) -> None:
    assert classify([make_pod(0, "Failed", **pod)], 1, 1).reason == reason


def test_the_first_cause_wins(make_pod: Make) -> None:
    pods = [
        make_pod(0, "Failed", exit_code=10, record=record("ModelNotFound", 9)),
        make_pod(1, "Failed", exit_code=10, record=record("DataFormatError", 5, rank=3)),
    ]
    cause = classify(pods, 2, 2)
    assert (cause.reason, cause.rank, cause.pod) == ("DataFormatError", 3, "tune-dpo-0-worker-1")


@pytest.mark.parametrize("time", ["yesterday", "2026-11-21T11:29:00", ""])
def test_a_record_with_a_time_that_is_none_counts_from_the_containers_end(make_pod: Make, time: str) -> None:
    odd = make_pod(0, "Failed", exit_code=10, record=record("ModelNotFound") | {"time": time})
    assert classify([odd], 1, 1).reason == "ModelNotFound"
    # The containers' end is at 11:30:00.
    for minute, first in ((29, "DataFormatError"), (31, "ModelNotFound")):
        words = record("DataFormatError") | {"time": f"2026-11-21T11:{minute}:00Z"}
        assert classify([odd, make_pod(1, "Failed", exit_code=10, record=words)], 2, 1).reason == first


@pytest.mark.parametrize("effect", ["PeerLost", "CommunicationTimeout", "Preempted"])
def test_what_follows_from_a_peers_end_is_not_the_cause_though_it_was_written_first(
    make_pod: Make, effect: str
) -> None:
    pods = [
        make_pod(0, "Failed", exit_code=137, record=record(effect, time="2026-11-21T11:29:00.5Z")),
        make_pod(1, "Failed", exit_code=137, exit_reason="OOMKilled"),
    ]
    assert classify(pods, 2, 1).reason == "OutOfHostMemory"


def test_a_pod_without_a_record_speaks_with_its_exit_code_and_log(make_pod: Make) -> None:
    cause = classify([make_pod(1, "Failed", exit_code=3, record="line\n" * 900)], 1, 4)
    assert (cause.exit_code, cause.rank) == (3, 4)
    assert cause.log is not None
    assert len(cause.log) == 2048


def test_a_pod_deleted_without_a_word_is_told_from_one_that_ended_well(make_pod: Make) -> None:
    gone = make_pod(1).vanished()
    assert classify([make_pod(0, "Succeeded", exit_code=0), gone], 2, 1).reason == "ChildDeleted"
    well = make_pod(0, "Succeeded", exit_code=0).vanished()
    assert classify([well], 1, 1).reason == "Unknown"


def test_an_attempt_that_never_ran_on_all_pods_is_a_start_that_failed(make_pod: Make) -> None:
    pods = [make_pod(0, "Failed", exit_code=1), make_pod(1, "Pending").vanished()]
    assert classify([pods[0]], 2, 1).reason == "StartTimeout"
    assert classify([make_pod(0, "Failed", exit_code=10, record=record("InvalidSpec"))], 2, 1).reason == "InvalidSpec"


@pytest.mark.parametrize("effect", ["PeerLost", "CommunicationTimeout"])
def test_an_attempt_that_lost_a_pod_before_all_have_run_costs_nothing(make_pod: Make, effect: str) -> None:
    gone = make_pod(1, "Pending").vanished()
    waited = make_pod(0, "Failed", exit_code=137, record=record(effect))
    for pods in ([make_pod(0), gone], [waited, gone]):
        cause = classify(pods, 2, 1)
        assert (cause.reason, REASONS[cause.reason].free) == ("StartTimeout", True)
        assert cause.message
    lost = make_pod(0, "Failed", exit_code=137, disruption="DeletionByTaintManager")
    assert classify([lost, gone], 2, 1).reason == "NodeLost", "what says more, and is free, is kept"


def test_the_pods_that_follow_a_failure_into_their_deletion_are_not_the_cause(make_pod: Make) -> None:
    follows = make_pod(0, "Failed", exit_code=143, deleted_at="2026-11-21T11:40:00Z", record=record("Preempted", 1))
    first = make_pod(1, "Failed", exit_code=14, record=record("RewardUnavailable", 5))
    assert classify([follows, first], 2, 1).reason == "RewardUnavailable"


def test_the_pods_that_follow_one_that_gave_way_were_deleted_by_nobody(make_pod: Make) -> None:
    follows = make_pod(0, "Failed", exit_code=143, deleted_at="2026-11-21T11:40:00Z", record=record("Preempted", 1))
    gave_way = make_pod(1, "Failed", exit_code=143, disruption="PreemptionByScheduler", record=record("Preempted", 5))
    assert classify([follows, gave_way], 2, 1).reason == "Preempted"


def test_an_attempt_that_is_known_to_have_run_is_no_start_that_failed(make_pod: Make) -> None:
    left = [make_pod(0, "Failed", exit_code=1)]
    assert classify(left, 2, 1, ran=True).reason == "Unknown"


def test_nothing_left_is_unknown(make_pod: Make) -> None:
    cause = classify([], 2, 1)
    assert (cause.reason, cause.untold) == ("Unknown", True)
    assert not classify([make_pod(0, "Failed", exit_code=1)], 1, 1).untold


def test_every_reason_of_the_trainer_has_a_hint() -> None:
    assert set(get_args(FailureReason)) <= REASONS.keys()
    for name, reason in REASONS.items():
        assert reason.hint.endswith("."), name
        assert "\n" not in reason.hint
        assert reason.retryable or not reason.free, name
